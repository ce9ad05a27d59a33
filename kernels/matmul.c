/* matmul and its weight: what may be passed. */
#include "kernels.h"

enum { size_max = INT32_MAX };

/* Elements of which each takes up to four bytes. */
static const int64_t addressable = PTRDIFF_MAX / (int64_t)sizeof(float);

static int misaligned(const void *pointer, size_t size) {
    return (uintptr_t)pointer % size != 0;
}

static int within(int64_t value, int64_t least, int64_t most) {
    return value >= least && value <= most;
}

static int is_height(int64_t height) {
    return height == 4 || height == 8 || height == 16;
}

static int32_t check_sizes(const coppice_weight *weight) {
    const int dense = weight->layout == COPPICE_DENSE;
    if ((!dense && weight->layout != COPPICE_SPARSE) || !(is_height(weight->height) || (!dense && weight->height == 1)))
        return COPPICE_LAYOUT;
    if (!coppice_type_size(weight->type))
        return COPPICE_TYPE;
    if (!within(weight->rows, 0, size_max) || !within(weight->cols, 0, size_max) ||
        !within(weight->slab, 1, COPPICE_SLAB_MAX) || !within(weight->entries, 0, UINT32_MAX))
        return COPPICE_SIZE;
    const int64_t bands = coppice_bands(weight);
    if (weight->entries > addressable / weight->height ||
        (bands > 0 && coppice_slabs(weight) > (addressable - 1) / bands))
        return COPPICE_SIZE;
    return dense && weight->entries != bands * weight->cols ? COPPICE_STARTS : COPPICE_OK;
}

static int32_t check_weight(const coppice_weight *weight) {
    const int32_t status = check_sizes(weight);
    if (status != COPPICE_OK)
        return status;
    const int sparse = weight->layout == COPPICE_SPARSE;
    if ((sparse && !weight->starts) || (weight->entries > 0 && ((sparse && !weight->columns) || !weight->values)))
        return COPPICE_NULL;
    if (misaligned(weight->starts, sizeof(uint32_t)) || misaligned(weight->columns, sizeof(uint16_t)) ||
        misaligned(weight->values, coppice_type_size(weight->type)) || misaligned(weight->scales, sizeof(float)))
        return COPPICE_ALIGNMENT;
    return COPPICE_OK;
}

int32_t coppice_weight_validate(const coppice_weight *weight) {
    if (!weight)
        return COPPICE_NULL;
    const int32_t status = check_weight(weight);
    if (status != COPPICE_OK || weight->layout == COPPICE_DENSE)
        return status;
    const int64_t bands = coppice_bands(weight), lists = coppice_slabs(weight) * bands;
    if (weight->starts[0] != 0 || weight->starts[lists] != weight->entries)
        return COPPICE_STARTS;
    for (int64_t list = 0; list < lists; list++)
        if (weight->starts[list] > weight->starts[list + 1])
            return COPPICE_STARTS;
    for (int64_t list = 0; list < lists; list++) {
        const int64_t width = coppice_slab_width(weight, list / bands);
        int64_t last = -1;
        for (uint32_t entry = weight->starts[list]; entry < weight->starts[list + 1]; entry++) {
            const int64_t column = weight->columns[entry];
            if (column <= last || column >= width)
                return COPPICE_COLUMNS;
            last = column;
        }
    }
    return COPPICE_OK;
}

/* A matrix of `rows` rows of `pixels` elements of `size` bytes each. */
static int32_t check_matrix(const void *data, size_t size, int64_t rows, int64_t pixels, int64_t stride) {
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

/* The last place of the last window along one axis, padding aside, must be a number. */
static int reaches(int64_t out, int64_t stride, int64_t kernel, int64_t dilation, int64_t pad) {
    return within(out, 0, size_max) && within(stride, 1, size_max) && within(kernel, 1, size_max) &&
           within(dilation, 1, size_max) && within(pad, 0, size_max);
}

static int32_t check_window(const coppice_window *window, const coppice_weight *weight, int64_t pixels) {
    if (!within(window->channels, 0, size_max) || !within(window->height, 0, size_max) ||
        !within(window->width, 0, size_max) ||
        !reaches(window->out_height, window->stride_y, window->kernel_y, window->dilation_y, window->pad_y) ||
        !reaches(window->out_width, window->stride_x, window->kernel_x, window->dilation_x, window->pad_x))
        return COPPICE_SIZE;
    if (window->channels * window->kernel_y > size_max ||
        window->channels * window->kernel_y * window->kernel_x != weight->cols ||
        window->out_height * window->out_width != pixels)
        return COPPICE_WINDOW;
    if (window->row_stride < window->width || window->row_stride > addressable ||
        (window->height > 0 && window->row_stride > addressable / window->height) ||
        window->channel_stride < (window->height > 0 ? (window->height - 1) * window->row_stride + window->width : 0) ||
        (window->channels > 0 && window->channel_stride > addressable / window->channels))
        return COPPICE_STRIDE;
    return COPPICE_OK;
}

static int32_t check_x(const coppice_matmul_args *args) {
    const size_t size = coppice_type_size(args->type);
    if (!args->window)
        return check_matrix(args->x, size, args->weight.cols, args->pixels, args->x_stride);
    const int32_t status = check_window(args->window, &args->weight, args->pixels);
    if (status != COPPICE_OK)
        return status;
    const coppice_window *window = args->window;
    if (window->channels == 0 || window->height == 0 || window->width == 0 || args->pixels == 0)
        return COPPICE_OK;
    if (!args->x)
        return COPPICE_NULL;
    return misaligned(args->x, size) ? COPPICE_ALIGNMENT : COPPICE_OK;
}

/* One slab of x by one panel, widened values, and the sums of one panel. */
int64_t coppice_matmul_scratch(const coppice_matmul_args *args) {
    if (!args)
        return COPPICE_NULL;
    const int32_t status = check_sizes(&args->weight);
    if (status != COPPICE_OK)
        return status;
    const coppice_weight *weight = &args->weight;
    const int64_t width = weight->cols < weight->slab ? weight->cols : weight->slab;
    const int64_t rows = coppice_bands(weight) * weight->height;
    const int64_t floats = (width + rows) * COPPICE_PANEL_PIXELS + COPPICE_PANEL_SLACK + coppice_widened(weight);
    return floats * (int64_t)sizeof(float) + 3 * COPPICE_SCRATCH_ALIGNMENT;
}

int32_t coppice_matmul_check(const coppice_matmul_args *args) {
    if (!args)
        return COPPICE_NULL;
    const coppice_weight *weight = &args->weight;
    int32_t status = check_weight(weight);
    if (status != COPPICE_OK)
        return status;
    if (args->type == COPPICE_I8 || !coppice_type_size(args->type) ||
        (args->arithmetic != COPPICE_F32 && args->arithmetic != COPPICE_F16))
        return COPPICE_TYPE;
    if (args->activation < COPPICE_CLAMP_ONLY || args->activation > COPPICE_GELU)
        return COPPICE_ACTIVATION;
    if (!within(args->pixels, 0, size_max))
        return COPPICE_SIZE;
    if (!(args->lower <= args->upper))
        return COPPICE_CLAMP;
    if (args->work.shares < 1 || args->work.share < 0 || args->work.share >= args->work.shares)
        return COPPICE_SHARE;
    if (misaligned(args->bias, sizeof(float)))
        return COPPICE_ALIGNMENT;
    const size_t size = coppice_type_size(args->type);
    status = check_x(args);
    if (status == COPPICE_OK)
        status = check_matrix(args->y, size, weight->rows, args->pixels, args->y_stride);
    if (status == COPPICE_OK && args->residual)
        status = check_matrix(args->residual, size, weight->rows, args->pixels, args->residual_stride);
    if (status != COPPICE_OK)
        return status;
    if (!args->work.scratch)
        return COPPICE_NULL;
    return args->work.scratch_bytes < coppice_matmul_scratch(args) ? COPPICE_SCRATCH : COPPICE_OK;
}
