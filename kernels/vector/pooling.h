/* pooling for vector registers: one algorithm, compiled once per instruction set. A band of a channel is laid out in
 * scratch (band.h), then tiles of some output rows by one vector go over it tap by tap; where the output is one column
 * wide, vectors go along the rows of x instead. */
#ifndef COPPICE_VECTOR_POOLING_H
#define COPPICE_VECTOR_POOLING_H

#include "band.h"

#include <math.h>

enum { tile_rows = 4 };

ALWAYS_INLINE vector combined(const int kind, vector a, vector b) {
    return kind == COPPICE_MAX_POOLING ? greatest(a, b) : add(a, b);
}

/* What a window begins with. */
ALWAYS_INLINE float nothing(const int kind) {
    return kind == COPPICE_MAX_POOLING ? -INFINITY : 0.0f;
}

/* How many of `kernel` places from `first` on, `dilation` apart, count: those in 0 .. size - 1, or, with count_padding,
 * those before size. */
static inline float places(int64_t first, int64_t kernel, int64_t dilation, int64_t size, int count_padding) {
    const int64_t before = first < 0 && !count_padding ? (dilation - 1 - first) / dilation : 0;
    const int64_t reached = first < size ? (size - 1 - first) / dilation + 1 : 0;
    const int64_t end = reached < kernel ? reached : kernel;
    return end > before ? (float)(end - before) : 0.0f;
}

static float rows_counted(const coppice_pooling_args *args, int64_t oy) {
    const coppice_window *w = &args->window;
    return places(oy * w->stride_y - w->pad_y, w->kernel_y, w->dilation_y,
                  w->height + (args->count_padding ? args->after_y : 0), args->count_padding);
}

static float columns_counted(const coppice_pooling_args *args, int64_t ox) {
    const coppice_window *w = &args->window;
    return places(ox * w->stride_x - w->pad_x, w->kernel_x, w->dilation_x,
                  w->width + (args->count_padding ? args->after_x : 0), args->count_padding);
}

/* `rows` output rows from row `top` of the band on, which begins with output row `first`. */
ALWAYS_INLINE void pool_tile(const int kind, const int rows, const coppice_pooling_args *args, const room *r,
                             const float *columns, int64_t channel, int64_t first, int64_t top, int64_t out_rows) {
    const coppice_window *w = &args->window;
    const int64_t step = r->band.row_step * r->row_floats;
    for (int64_t begin = 0; begin < w->out_width; begin += LANES) {
        const int64_t ox = strip_at(w->out_width, begin);
        vector held[tile_rows];
        for (int i = 0; i < rows; i++)
            held[i] = broadcast(nothing(kind));
        for (int64_t ky = 0; ky < w->kernel_y; ky++) {
            const float *from = r->rows + top * step + ky * r->band.tap_step * r->row_floats + ox;
            for (int64_t kx = 0; kx < w->kernel_x; kx++)
                for (int i = 0; i < rows; i++)
                    held[i] = combined(kind, held[i], load(from + r->taps[kx] + i * step));
        }
        for (int i = 0; i < rows; i++) {
            const int64_t oy = first + top + i;
            if (kind == COPPICE_AVERAGE_POOLING)
                held[i] = divide(held[i], multiply(broadcast(rows_counted(args, oy)), load(columns + ox)));
            store_as(args->type, args->y, channel * args->y_stride + oy * w->out_width + ox,
                     lanes_stored(w->out_width, top + i, out_rows), held[i]);
        }
    }
}

ALWAYS_INLINE void pool_bands(const int kind, const coppice_pooling_args *args, coppice_part part) {
    const coppice_window *w = &args->window;
    const room r = begin_room(w, nothing(kind), args->work.scratch);
    float *columns = r.rows + r.band.rows * r.row_floats;
    for (int64_t ox = 0; ox < w->out_width; ox++)
        columns[ox] = columns_counted(args, ox);
    for (int64_t channel = part.row; channel < part.end_row; channel++)
        for (int64_t first = part.line; first < part.end_line; first += r.band.out_rows) {
            const int64_t left = part.end_line - first, out_rows = left < r.band.out_rows ? left : r.band.out_rows;
            pack_room(args->type, args->x, channel, &r, first, out_rows);
            int64_t top = 0;
            for (; out_rows - top >= tile_rows; top += tile_rows)
                pool_tile(kind, tile_rows, args, &r, columns, channel, first, top, out_rows);
            for (; top < out_rows; top++)
                pool_tile(kind, 1, args, &r, columns, channel, first, top, out_rows);
        }
}

/* The only window of an output row, whose columns follow each other, and its rows too where x is all of it. */
ALWAYS_INLINE vector pool_row(const int kind, const coppice_pooling_args *args, int64_t channel, int64_t oy) {
    const coppice_window *w = &args->window;
    const int64_t first = oy * w->stride_y - w->pad_y, reach = w->kernel_x - w->pad_x;
    const int64_t reached = first < w->height ? (w->height - 1 - first) / w->dilation_y + 1 : 0;
    int64_t ky = first < 0 ? (w->dilation_y - 1 - first) / w->dilation_y : 0,
            length = reach < w->width ? reach : w->width;
    int64_t end = reached < w->kernel_y ? reached : w->kernel_y;
    if (w->dilation_y == 1 && length == w->row_stride && end > ky) {
        length *= end - ky;
        end = ky + 1;
    }
    vector held = broadcast(nothing(kind));
    for (; ky < end; ky++)
        for (int64_t x = 0; x < length; x += LANES) {
            const int count = (int)(length - x < LANES ? length - x : LANES);
            const int64_t row = channel * w->channel_stride + (first + ky * w->dilation_y) * w->row_stride;
            const vector part = load_as(args->type, args->x, row + x, count);
            held = combined(kind, held, count < LANES ? first_lanes(count, part, broadcast(nothing(kind))) : part);
        }
    return held;
}

/* NaN where a lane is. */
static float greatest_lane(vector a) {
    float lane[LANES], most = -INFINITY;
    store(lane, a);
    for (int i = 0; i < LANES && most == most; i++)
        most = lane[i] <= most ? most : lane[i];
    return most;
}

static void pool_columns(const coppice_pooling_args *args, coppice_part part) {
    const float columns = columns_counted(args, 0);
    for (int64_t channel = part.row; channel < part.end_row; channel++)
        for (int64_t oy = part.line; oy < part.end_line; oy++) {
            float result;
            if (args->kind == COPPICE_AVERAGE_POOLING) {
                result = sum_lanes(pool_row(COPPICE_AVERAGE_POOLING, args, channel, oy));
                result /= rows_counted(args, oy) * columns;
            } else {
                result = greatest_lane(pool_row(COPPICE_MAX_POOLING, args, channel, oy));
            }
            coppice_store(args->type, args->y, channel * args->y_stride + oy, result);
        }
}

static void pooling_vectors(const coppice_pooling_args *args) {
    const coppice_window *w = &args->window;
    if (w->channels == 0 || w->out_height == 0 || w->out_width == 0)
        return;
    const coppice_part part = coppice_part_of(&args->work, w->channels, w->out_height);
    if (w->out_width == 1 && w->dilation_x == 1)
        pool_columns(args, part);
    else if (args->kind == COPPICE_MAX_POOLING)
        pool_bands(COPPICE_MAX_POOLING, args, part);
    else
        pool_bands(COPPICE_AVERAGE_POOLING, args, part);
}

#endif
