/* What the checks of all primitives have in common; included by those files alone. */
#ifndef COPPICE_ARGUMENTS_H
#define COPPICE_ARGUMENTS_H

#include "kernels.h"

enum { size_max = INT32_MAX };

/* Elements of which each takes up to four bytes. */
static const int64_t addressable = PTRDIFF_MAX / (int64_t)sizeof(float);

static inline int misaligned(const void *pointer, size_t size) {
    return (uintptr_t)pointer % size != 0;
}

static inline int within(int64_t value, int64_t least, int64_t most) {
    return value >= least && value <= most;
}

/* Types of activations: all but bytes. */
static inline int is_activation_type(int32_t type) {
    return type != COPPICE_I8 && coppice_type_size(type) != 0;
}

/* A matrix of `rows` rows of `pixels` elements of `size` bytes each. */
static inline int32_t check_matrix(const void *data, size_t size, int64_t rows, int64_t pixels, int64_t stride) {
    if (rows == 0 || pixels == 0)
        return COPPICE_OK;
    if (!data)
        return COPPICE_NULL;
    if (misaligned(data, size))
        return COPPICE_ALIGNMENT;
    if (stride < pixels || stride > addressable / rows)
        return COPPICE_STRIDE;
    return COPPICE_OK;
}

static inline int32_t check_epilogue(int32_t activation, float lower, float upper) {
    if (activation < COPPICE_CLAMP_ONLY || activation > COPPICE_GELU)
        return COPPICE_ACTIVATION;
    return lower <= upper ? COPPICE_OK : COPPICE_CLAMP;
}

/* `scratch`: the bytes that are needed, or a negative status. */
static inline int32_t check_work(const coppice_work *work, int64_t scratch) {
    if (work->shares < 1 || work->share < 0 || work->share >= work->shares)
        return COPPICE_SHARE;
    if (scratch < 0)
        return (int32_t)scratch;
    if (scratch > 0 && !work->scratch)
        return COPPICE_NULL;
    return work->scratch_bytes < scratch ? COPPICE_SCRATCH : COPPICE_OK;
}

/* The last place of the last window along one axis, padding aside, must be a number. */
static inline int reaches(int64_t out, int64_t stride, int64_t kernel, int64_t dilation, int64_t pad) {
    return within(out, 0, size_max) && within(stride, 1, size_max) && within(kernel, 1, size_max) &&
           within(dilation, 1, size_max) && within(pad, 0, size_max);
}

/* The sizes of a window, and the strides of the x that it walks over. */
static inline int32_t check_window(const coppice_window *window) {
    if (!within(window->channels, 0, size_max) || !within(window->height, 0, size_max) ||
        !within(window->width, 0, size_max) ||
        !reaches(window->out_height, window->stride_y, window->kernel_y, window->dilation_y, window->pad_y) ||
        !reaches(window->out_width, window->stride_x, window->kernel_x, window->dilation_x, window->pad_x) ||
        window->out_height * window->out_width > size_max)
        return COPPICE_SIZE;
    if (window->row_stride < window->width || window->row_stride > addressable ||
        (window->height > 0 && window->row_stride > addressable / window->height) ||
        window->channel_stride < (window->height > 0 ? (window->height - 1) * window->row_stride + window->width : 0) ||
        (window->channels > 0 && window->channel_stride > addressable / window->channels))
        return COPPICE_STRIDE;
    return COPPICE_OK;
}

/* The x of a window that is valid. */
static inline int32_t check_image(const void *x, int32_t type, const coppice_window *window) {
    if (window->channels == 0 || window->height == 0 || window->width == 0 ||
        window->out_height * window->out_width == 0)
        return COPPICE_OK;
    if (!x)
        return COPPICE_NULL;
    return misaligned(x, coppice_type_size(type)) ? COPPICE_ALIGNMENT : COPPICE_OK;
}

/* An x of so many columns and pixels, or windows that make as many. */
static inline int32_t check_columns(const void *x, int32_t type, int64_t stride, const coppice_window *window,
                                    int64_t cols, int64_t pixels) {
    if (!window)
        return check_matrix(x, coppice_type_size(type), cols, pixels, stride);
    const int32_t status = check_window(window);
    if (status != COPPICE_OK)
        return status;
    if (window->channels * window->kernel_y > size_max ||
        window->channels * window->kernel_y * window->kernel_x != cols ||
        window->out_height * window->out_width != pixels)
        return COPPICE_WINDOW;
    return check_image(x, type, window);
}

#endif
