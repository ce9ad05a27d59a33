/* The windows of a convolution, laid out as a block of x. */
#ifndef COPPICE_VECTOR_WINDOWS_H
#define COPPICE_VECTOR_WINDOWS_H

#include "pack.h"

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

/* --- the same for all columns --------------------------------------------------------------------------------------
 */

/* How windows lie over a panel, whatever the column. A run is what the panel has of a row of results, a strip up to a
 * vector of that. */
typedef struct strip {
    int64_t run, at; /* `at` in the panel */
    int64_t x;       /* of its first pixel and the first tap */
} strip;

enum { most_strips = 256, most_rows_of_runs = 1024, long_run = 40 };

typedef struct outline {
    int64_t runs, strips;
    strip strip[most_strips];
    int64_t rows[most_rows_of_runs]; /* [kernel_y][runs]: where the row of x begins in its channel; -1: outside of x */
} outline;

/* NULL: there are too many strips, or runs so long that copy_windows is quicker. */
static const outline *draw_outline(panel part, const coppice_window *w, outline *o) {
    const int64_t pixels = pixels_of(part, LANES), first_y = pixels ? part.first / w->out_width : 0;
    const int64_t end_y = pixels ? (part.first + pixels - 1) / w->out_width + 1 : 0;
    o->runs = end_y - first_y, o->strips = 0;
    if (w->stride_x == 2 && pixels > long_run * o->runs)
        return NULL;
    if (o->runs > most_rows_of_runs / w->kernel_y || pixels / LANES + o->runs > most_strips)
        return NULL;
    for (int64_t run = 0, at = 0; run < o->runs; run++) {
        const int64_t oy = first_y + run, first_x = run ? 0 : part.first % w->out_width;
        const int64_t left = pixels - at, count = w->out_width - first_x < left ? w->out_width - first_x : left;
        for (int64_t i = 0; i < count; i += LANES)
            o->strip[o->strips++] = (strip){run, at + i, (first_x + i) * w->stride_x - w->pad_x};
        for (int64_t ky = 0; ky < w->kernel_y; ky++) {
            const int64_t y = oy * w->stride_y + ky * w->dilation_y - w->pad_y;
            o->rows[ky * o->runs + run] = y < 0 || y >= w->height ? -1 : y * w->row_stride;
        }
        at += count;
    }
    return o;
}

/* That of a panel where its strips are vectors of x, drawn in `room`; else NULL. */
static inline const outline *outline_of(panel part, const coppice_window *w, outline *room) {
    return w && w->stride_x <= 2 ? draw_outline(part, w, room) : NULL;
}

/* As copy_windows, of a panel with an outline. */
ALWAYS_INLINE void copy_outlined(const int type, const int step, const coppice_matmul_args *args, int64_t first,
                                 int64_t columns, panel part, float *to) {
    const coppice_window *w = args->window;
    const outline *o = part.outline;
    int64_t channel = first / (w->kernel_y * w->kernel_x);
    int64_t ky = first / w->kernel_x % w->kernel_y, kx = first % w->kernel_x;
    for (int64_t column = 0; column < columns; column++, to += part.vectors * LANES) {
        const int64_t base = channel * w->channel_stride, shift = kx * w->dilation_x, *rows = o->rows + ky * o->runs;
        for (const strip *s = o->strip; s < o->strip + o->strips; s++) {
            const int64_t row = rows[s->run], start = s->x + shift, x = base + row + start;
            const int64_t left = w->width - start;
            vector found = zero();
            if (row >= 0 && step == 1)
                found = load_between(type, args->x, x, -start, left);
            else if (row >= 0)
                found = even_lanes(load_between(type, args->x, x, -start, left),
                                   load_between(type, args->x, x + LANES, -start - LANES, left - LANES));
            store(to + s->at, found);
        }
        if (part.tail)
            store(to + pixels_of(part, LANES), zero());
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
    if (part.outline && args->window->stride_x == 1)
        EACH_TYPE(args->type, copy_outlined(type, 1, args, first, columns, part, to))
    else if (part.outline)
        EACH_TYPE(args->type, copy_outlined(type, 2, args, first, columns, part, to))
    else
        EACH_TYPE(args->type, copy_windows(type, COPPICE_F32, args, first, columns, part.first, pixels, stride, to))
    return (block){to, stride};
}

#endif
