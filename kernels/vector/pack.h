/* Blocks of activations for the algorithms of this folder: fp32, aligned, contiguous, padded to whole vectors. */
#ifndef COPPICE_VECTOR_PACK_H
#define COPPICE_VECTOR_PACK_H

#include "elements.h"

#include <string.h>

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

/* Pixels of a panel of vectors of so many lanes. */
ALWAYS_INLINE int64_t pixels_of(panel part, int lanes) {
    return (int64_t)part.vectors * lanes - (part.tail ? lanes - part.tail : 0);
}

/* Lanes of vector `index` of a panel that count. */
ALWAYS_INLINE int lanes_of(panel part, int index) {
    return part.tail && index + 1 == part.vectors ? part.tail : LANES;
}

/* values[first .. first + count] of a narrow type as fp32 in `to`; up to a vector more is written, none more is read.
 */
static inline const float *widen(int type, const void *values, size_t first, size_t count, float *to) {
    for (size_t i = 0; i < count; i += LANES) {
        const int held = count - i < LANES ? (int)(count - i) : LANES;
        store(to + i, values_at(type, values, first + i, held));
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
static inline block pack_rows(const coppice_matmul_args *args, int64_t first, int64_t columns, panel part, float *to) {
    EACH_TYPE(args->type, copy_rows(type, args, first, columns, part, to))
    return (block){to, (int64_t)part.vectors * LANES};
}

/* A copy of x holds elements of type `held`: COPPICE_F32, or COPPICE_F16 where x is that too. Both are written from
 * `at` on; of COPPICE_F32 up to a vector past `count`. */
ALWAYS_INLINE void clear(const int held, void *to, int64_t at, int64_t count) {
    if (held == COPPICE_F16)
        memset((uint16_t *)to + at, 0, (size_t)count * sizeof(uint16_t));
    else
        fill((float *)to + at, count, 0.0f);
}

/* `count` elements of x from `first` on, `step` apart, one by one. */
ALWAYS_INLINE void copy(const int type, const int held, const void *x, int64_t first, int64_t step, int64_t count,
                        void *to, int64_t at) {
    if (step == 1 && held == COPPICE_F16 && count > 0)
        memcpy((uint16_t *)to + at, (const uint16_t *)x + first, (size_t)count * sizeof(uint16_t));
    else if (held == COPPICE_F16)
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)to)[at + i] = ((const uint16_t *)x)[first + i * step];
    else
        for (int64_t i = 0; i < count; i++)
            ((float *)to)[at + i] = coppice_load(type, x, first + i * step);
}

/* Elements start, start + step, ... of a row of x that has `width`, zero outside of it; up to a vector more is written
 * where x is widened. */
ALWAYS_INLINE void copy_run(const int type, const int held, const void *x, int64_t row, int64_t width, int64_t start,
                            int64_t step, int64_t count, void *to, int64_t at) {
    if (held == COPPICE_F32 && step == 1) {
        for (int64_t i = 0; i < count; i += LANES, start += LANES)
            store((float *)to + at + i, load_between(type, x, row + start, -start, width - start));
        return;
    }
    if (held == COPPICE_F32 && step == 2) {
        for (int64_t i = 0; i < count; i += LANES, start += 2 * LANES) {
            const int64_t most = 2 * (count - i) - 1, left = width - start < most ? width - start : most;
            const vector low = load_between(type, x, row + start, -start, left);
            const vector high = load_between(type, x, row + start + LANES, -start - LANES, left - LANES);
            store((float *)to + at + i, even_lanes(low, high));
        }
        return;
    }
    int64_t before = start < 0 ? (-start + step - 1) / step : 0;
    before = before < count ? before : count;
    const int64_t left = width - (start + before * step);
    int64_t inside = left > 0 ? (left + step - 1) / step : 0;
    inside = inside < count - before ? inside : count - before;
    clear(held, to, at, before);
    copy(type, held, x, row + start + before * step, step, inside, to, at + before);
    clear(held, to, at + before + inside, count - before - inside);
}

/* to[columns][stride], of which `pixels` are from `pixel` on and the others zero. Rows run upwards, and each overwrites
 * what the one before it wrote too much. */
ALWAYS_INLINE void copy_windows(const int type, const int held, const coppice_matmul_args *args, int64_t first,
                                int64_t columns, int64_t pixel, int64_t pixels, int64_t stride, void *to) {
    const coppice_window *w = args->window;
    const int64_t first_y = pixel / w->out_width, first_x = pixel % w->out_width;
    int64_t channel = first / (w->kernel_y * w->kernel_x);
    int64_t ky = first / w->kernel_x % w->kernel_y, kx = first % w->kernel_x;
    for (int64_t column = 0, at = 0; column < columns; column++, at += stride) {
        int64_t oy = first_y, ox = first_x;
        for (int64_t done = 0; done < pixels; oy++, ox = 0) {
            const int64_t y = oy * w->stride_y + ky * w->dilation_y - w->pad_y;
            const int64_t x = ox * w->stride_x + kx * w->dilation_x - w->pad_x;
            const int64_t run = w->out_width - ox < pixels - done ? w->out_width - ox : pixels - done;
            if (y < 0 || y >= w->height)
                clear(held, to, at + done, run);
            else
                copy_run(type, held, args->x, channel * w->channel_stride + y * w->row_stride, w->width, x, w->stride_x,
                         run, to, at + done);
            done += run;
        }
        clear(held, to, at + pixels, stride - pixels);
        if (++kx == w->kernel_x) {
            kx = 0;
            if (++ky == w->kernel_y)
                ky = 0, channel++;
        }
    }
}

/* `columns` columns of the windows of x from `first` on. */
static inline block pack_windows(const coppice_matmul_args *args, int64_t first, int64_t columns, panel part,
                                 float *to) {
    const int64_t stride = (int64_t)part.vectors * LANES, pixels = pixels_of(part, LANES);
    EACH_TYPE(args->type, copy_windows(type, COPPICE_F32, args, first, columns, part.first, pixels, stride, to))
    return (block){to, stride};
}

#endif
