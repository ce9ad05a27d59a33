/* depthwise for vector registers: one algorithm, compiled once per instruction set.
 *
 * A band of a channel is laid out in scratch (band.h). The usual kernels march down it one vector wide: each vector of
 * the band is loaded once for all output rows that it takes part in, whose sums are held in registers as the weights
 * are. Any other kernel goes tap by tap. */
#ifndef COPPICE_VECTOR_DEPTHWISE_H
#define COPPICE_VECTOR_DEPTHWISE_H

#include "activation.h"
#include "band.h"

enum { most_taps = 5, tile_rows = 4 };

/* A band, and the row of the result that is made from it. */
typedef struct pass {
    const coppice_depthwise_args *args;
    const room *from;
    int64_t row, first; /* first: output row of the band's beginning */
} pass;

/* What a strip of the result one vector wide needs, apart from memory that a store to it might change. */
typedef struct strip {
    int64_t index, width, rows; /* of its first element in y; columns and rows of the band's result */
    vector bias, lower, upper;
} strip;

ALWAYS_INLINE strip strip_of(const pass *p, int64_t ox, int64_t rows) {
    const coppice_depthwise_args *args = p->args;
    const int64_t width = args->window.out_width;
    return (strip){.index = p->row * args->y_stride + p->first * width + ox,
                   .width = width,
                   .rows = rows,
                   .bias = broadcast(args->bias ? args->bias[p->row] : 0.0f),
                   .lower = broadcast(args->lower),
                   .upper = broadcast(args->upper)};
}

/* Sums become row `row` of a strip. */
ALWAYS_INLINE void put(const int type, const int activation, void *y, const strip *s, int64_t row, vector sum) {
    store_as(type, y, s->index + row * s->width, lanes_stored(s->width, row, s->rows),
             finished(activation, s->lower, s->upper, sum));
}

/* A square kernel. Its size and stride are constants wherever this is called, so that the loops over them unroll and
 * their arrays live in registers; so are, where it is worth it, type and activation. sum[j] belongs to the output row
 * that began j windows above. */
ALWAYS_INLINE void march(const int kernel, const int stride, const int type, const int activation, const pass *p,
                         int64_t out_rows) {
    const coppice_window *w = &p->args->window;
    const float *weight = p->args->weight + p->row * kernel * kernel;
    const int64_t row_floats = p->from->row_floats, width = w->out_width;
    const int live = (kernel + stride - 1) / stride;
    void *y = p->args->y;
    int64_t taps[most_taps];
    vector held[most_taps][most_taps];
    for (int kx = 0; kx < kernel; kx++)
        taps[kx] = p->from->taps[kx];
    for (int ky = 0; ky < kernel; ky++)
        for (int kx = 0; kx < kernel; kx++)
            held[ky][kx] = broadcast(weight[ky * kernel + kx]);
    for (int64_t ox = 0; ox < width; ox += LANES) {
        const strip s = strip_of(p, strip_at(width, ox), out_rows);
        const float *from = p->from->rows + strip_at(width, ox);
        vector sum[most_taps];
        for (int j = 0; j < live; j++)
            sum[j] = s.bias;
        for (int64_t row = 1 - live; row < out_rows; row++, from += stride * row_floats) {
            for (int i = 0; i < stride; i++)
                for (int kx = 0; kx < kernel; kx++) {
                    const vector x = in_register(load(from + i * row_floats + taps[kx]));
                    for (int j = 0; j < live; j++)
                        if (i + j * stride < kernel)
                            sum[j] = multiply_add(held[i + j * stride][kx], x, sum[j]);
                }
            if (row >= 0)
                put(type, activation, y, &s, row, sum[live - 1]);
            for (int j = live - 1; j > 0; j--)
                sum[j] = sum[j - 1];
            sum[0] = s.bias;
        }
    }
}

/* `rows` output rows, a constant, from row `top` of the band on, by a kernel of any size. */
ALWAYS_INLINE void go_by_taps(const int rows, const pass *p, int64_t top, int64_t out_rows) {
    const coppice_window *w = &p->args->window;
    const coppice_band *band = &p->from->band;
    const int64_t row_floats = p->from->row_floats, step = band->row_step * row_floats;
    for (int64_t begin = 0; begin < w->out_width; begin += LANES) {
        const int64_t ox = strip_at(w->out_width, begin);
        const float *weight = p->args->weight + p->row * w->kernel_y * w->kernel_x;
        const strip s = strip_of(p, ox, out_rows);
        vector sum[tile_rows];
        for (int r = 0; r < rows; r++)
            sum[r] = s.bias;
        for (int64_t ky = 0; ky < w->kernel_y; ky++) {
            const float *from = p->from->rows + top * step + ky * band->tap_step * row_floats + ox;
            for (int64_t kx = 0; kx < w->kernel_x; kx++) {
                const float *x = from + p->from->taps[kx];
                const vector value = broadcast(*weight++);
                for (int r = 0; r < rows; r++)
                    sum[r] = multiply_add(value, load(x + r * step), sum[r]);
            }
        }
        for (int r = 0; r < rows; r++)
            put(p->args->type, p->args->activation, p->args->y, &s, top + r, sum[r]);
    }
}

static void run_band(const pass *p, int64_t out_rows) {
    const coppice_window *w = &p->args->window;
    const int type = p->args->type, activation = p->args->activation;
    const int square = w->kernel_y == w->kernel_x && w->dilation_y == 1 && p->from->band.row_step == w->stride_y;
#define KERNEL(kernel, stride)                                                                                         \
    if (square && w->kernel_y == kernel && w->stride_y == stride) {                                                    \
        if (activation != COPPICE_CLAMP_ONLY)                                                                          \
            march(kernel, stride, type, activation, p, out_rows);                                                      \
        else if (type == COPPICE_F32)                                                                                  \
            march(kernel, stride, COPPICE_F32, COPPICE_CLAMP_ONLY, p, out_rows);                                       \
        else if (type == COPPICE_F16)                                                                                  \
            march(kernel, stride, COPPICE_F16, COPPICE_CLAMP_ONLY, p, out_rows);                                       \
        else                                                                                                           \
            march(kernel, stride, COPPICE_BF16, COPPICE_CLAMP_ONLY, p, out_rows);                                      \
        return;                                                                                                        \
    }
    KERNEL(3, 1)
    KERNEL(3, 2)
    KERNEL(5, 1)
    KERNEL(5, 2)
#undef KERNEL
    int64_t top = 0;
    for (; out_rows - top >= tile_rows; top += tile_rows)
        go_by_taps(tile_rows, p, top, out_rows);
    for (; top < out_rows; top++)
        go_by_taps(1, p, top, out_rows);
}

static int64_t source_of(const coppice_depthwise_args *args, int64_t row) {
    return args->sources ? args->sources[row] : row;
}

static void depthwise_vectors(const coppice_depthwise_args *args) {
    const coppice_window *w = &args->window;
    if (args->rows == 0 || w->out_height == 0 || w->out_width == 0)
        return;
    const coppice_part part = coppice_part_of(&args->work, args->rows, w->out_height);
    const room r = begin_room(w, 0.0f, args->work.scratch);
    pass p = {.args = args, .from = &r};
    for (int64_t row = part.row, next; row < part.end_row; row = next) {
        const int64_t source = source_of(args, row);
        for (next = row + 1; next < part.end_row && source_of(args, next) == source;)
            next++;
        for (p.first = part.line; p.first < part.end_line; p.first += r.band.out_rows) {
            const int64_t left = part.end_line - p.first, out_rows = left < r.band.out_rows ? left : r.band.out_rows;
            pack_room(args->type, args->x, source, &r, p.first, out_rows);
            for (p.row = row; p.row < next; p.row++)
                run_band(&p, out_rows);
        }
    }
}

#endif
