/* Blocks of activations for the algorithms of this folder: fp32, aligned, contiguous, padded to whole vectors. */
#ifndef COPPICE_VECTOR_PACK_H
#define COPPICE_VECTOR_PACK_H

#include "elements.h"

/* The columns of one slab by the pixels of one panel, row-major; whole vectors may be read. */
typedef struct block {
    const float *x;
    int64_t stride;
} block;

/* Pixels from `first` on, in `vectors` vectors; of the last one only `tail` < LANES lanes count unless tail is zero. */
typedef struct panel {
    int64_t first;
    int vectors;
    int tail;
} panel;

/* Lanes of vector `index` of a panel that count. */
ALWAYS_INLINE int lanes_of(panel part, int index) {
    return part.tail && index + 1 == part.vectors ? part.tail : LANES;
}

/* values[first .. first + count] of a narrow type as fp32 in `to`; up to a vector more is written, none more is read.
 */
static const float *widen(int type, const void *values, size_t first, size_t count, float *to) {
    for (size_t i = 0; i < count; i += LANES) {
        const int held = count - i < LANES ? (int)(count - i) : LANES;
        if (type == COPPICE_I8)
            store(to + i, load_i8((const int8_t *)values + first + i, held));
        else
            store(to + i, load_as(type, values, (int64_t)(first + i), held));
    }
    return to;
}

ALWAYS_INLINE void copy_rows(const int type, const coppice_matmul_args *args, int64_t first, int64_t columns,
                             panel part, float *to) {
    const int64_t stride = (int64_t)part.vectors * LANES;
    for (int64_t column = 0; column < columns; column++)
        for (int v = 0; v < part.vectors; v++) {
            const int64_t place = (first + column) * args->x_stride + part.first + v * LANES;
            store(to + column * stride + v * LANES, load_as(type, args->x, place, lanes_of(part, v)));
        }
}

/* `columns` rows of x from `first` on. */
static block pack_rows(const coppice_matmul_args *args, int64_t first, int64_t columns, panel part, float *to) {
    switch (args->type) {
    case COPPICE_F16:
        copy_rows(COPPICE_F16, args, first, columns, part, to);
        break;
    case COPPICE_BF16:
        copy_rows(COPPICE_BF16, args, first, columns, part, to);
        break;
    default:
        copy_rows(COPPICE_F32, args, first, columns, part, to);
    }
    return (block){to, (int64_t)part.vectors * LANES};
}

/* Rows run upwards, and each overwrites what the one before it wrote too much. */
ALWAYS_INLINE void copy_windows(const int type, const coppice_matmul_args *args, int64_t first, int64_t columns,
                                panel part, float *to) {
    const coppice_window *w = args->window;
    const int64_t stride = (int64_t)part.vectors * LANES, pixels = stride - (part.tail ? LANES - part.tail : 0);
    const int64_t first_y = part.first / w->out_width, first_x = part.first % w->out_width;
    for (int64_t column = first; column < first + columns; column++, to += stride) {
        const int64_t kernel = w->kernel_y * w->kernel_x, channel = column / kernel;
        const int64_t ky = column % kernel / w->kernel_x, kx = column % w->kernel_x;
        int64_t oy = first_y, ox = first_x;
        for (int64_t done = 0; done < pixels; oy++, ox = 0) {
            const int64_t y = oy * w->stride_y + ky * w->dilation_y - w->pad_y;
            const int64_t x = ox * w->stride_x + kx * w->dilation_x - w->pad_x;
            const int64_t run = w->out_width - ox < pixels - done ? w->out_width - ox : pixels - done;
            if (y < 0 || y >= w->height)
                fill(to + done, run, 0.0f);
            else
                copy_run(type, args->x, channel * w->channel_stride + y * w->row_stride, w->width, x, w->stride_x, run,
                         to + done);
            done += run;
        }
        fill(to + pixels, stride - pixels, 0.0f);
    }
}

/* `columns` columns of the windows of x from `first` on. */
static block pack_windows(const coppice_matmul_args *args, int64_t first, int64_t columns, panel part, float *to) {
    switch (args->type) {
    case COPPICE_F16:
        copy_windows(COPPICE_F16, args, first, columns, part, to);
        break;
    case COPPICE_BF16:
        copy_windows(COPPICE_BF16, args, first, columns, part, to);
        break;
    default:
        copy_windows(COPPICE_F32, args, first, columns, part, to);
    }
    return (block){to, (int64_t)part.vectors * LANES};
}

#endif
