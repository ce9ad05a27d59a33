/* depthwise for vector registers: one algorithm, compiled once per instruction set.
 *
 * A band of a channel is laid out in scratch (band.h), then tiles of some output rows by one vector run over it. The
 * usual kernels march down the rows of the band: each vector of it is loaded once for all output rows of the tile that
 * it takes part in, and the weights stay in registers. Any other kernel goes tap by tap.
 *
 * Before this file come the vectors of the instruction set and, by what its registers can hold, TILE_CASES, a
 * CASE(rows) for every height of a tile, the tallest first and 1 last. */
#ifndef COPPICE_VECTOR_DEPTHWISE_H
#define COPPICE_VECTOR_DEPTHWISE_H

#include "activation.h"
#include "band.h"

enum { most_rows = 8, most_taps = 5 };

/* A band, and the row of the result that is made from it. */
typedef struct pass {
    const coppice_depthwise_args *args;
    const coppice_band *band;
    const float *from;
    int64_t row, first; /* first: output row of the band's beginning */
} pass;

/* y at output row `oy` and columns from `ox` on. */
ALWAYS_INLINE void put(const pass *p, const int plain, int64_t oy, int64_t ox, vector z) {
    const coppice_depthwise_args *args = p->args;
    const int64_t width = args->window.out_width, left = width - ox;
    const int64_t index = p->row * args->y_stride + oy * width + ox;
    const int count = (int)(left < LANES ? left : LANES);
    if (plain)
        store_as(COPPICE_F32, args->y, index, count, finished(COPPICE_CLAMP_ONLY, args->lower, args->upper, z));
    else
        store_as(args->type, args->y, index, count, finished(args->activation, args->lower, args->upper, z));
}

/* `rows` output rows from row `top` of the band on. All but the last two arguments are constants wherever this is
 * called, so that the loops over them unroll and their arrays live in registers. */
ALWAYS_INLINE void march(const int kernel, const int stride_y, const int rows, const int plain, const pass *p,
                         int64_t top) {
    const coppice_window *w = &p->args->window;
    const float *weight = p->args->weight + p->row * kernel * kernel;
    const int64_t row_floats = p->band->lines * p->band->pitch;
    const vector bias = broadcast(p->args->bias ? p->args->bias[p->row] : 0.0f);
    const float *taps[most_taps];
    for (int kx = 0; kx < kernel; kx++)
        taps[kx] = p->from + top * stride_y * row_floats + tap_of(w, p->band, kx);
    vector held[most_taps][most_taps];
    for (int ky = 0; ky < kernel; ky++)
        for (int kx = 0; kx < kernel; kx++)
            held[ky][kx] = broadcast(weight[ky * kernel + kx]);
    for (int64_t ox = 0; ox < w->out_width; ox += LANES) {
        vector sum[most_rows];
        for (int r = 0; r < rows; r++)
            sum[r] = bias;
        for (int y = 0; y < (rows - 1) * stride_y + kernel; y++)
            for (int kx = 0; kx < kernel; kx++) {
                const vector x = load(taps[kx] + y * row_floats + ox);
                for (int r = 0; r < rows; r++)
                    if (y >= r * stride_y && y < r * stride_y + kernel)
                        sum[r] = multiply_add(held[y - r * stride_y][kx], x, sum[r]);
            }
        for (int r = 0; r < rows; r++)
            put(p, plain, p->first + top + r, ox, sum[r]);
    }
}

/* The same for a kernel of any size. */
ALWAYS_INLINE void go_by_taps(const int rows, const pass *p, int64_t top) {
    const coppice_window *w = &p->args->window;
    const coppice_band *band = p->band;
    const int64_t row_floats = band->lines * band->pitch, step = band->row_step * row_floats;
    const vector bias = broadcast(p->args->bias ? p->args->bias[p->row] : 0.0f);
    for (int64_t ox = 0; ox < w->out_width; ox += LANES) {
        const float *weight = p->args->weight + p->row * w->kernel_y * w->kernel_x;
        vector sum[most_rows];
        for (int r = 0; r < rows; r++)
            sum[r] = bias;
        for (int64_t ky = 0; ky < w->kernel_y; ky++) {
            const float *from = p->from + top * step + ky * band->tap_step * row_floats + ox;
            for (int64_t kx = 0; kx < w->kernel_x; kx++) {
                const float *x = from + tap_of(w, band, kx);
                const vector value = broadcast(*weight++);
                for (int r = 0; r < rows; r++)
                    sum[r] = multiply_add(value, load(x + r * step), sum[r]);
            }
        }
        for (int r = 0; r < rows; r++)
            put(p, 0, p->first + top + r, ox, sum[r]);
    }
}

/* The tallest tiles that fit, from the top of the band down. kernel 0: any. */
ALWAYS_INLINE void run_tiles(const int kernel, const int stride_y, const int plain, const pass *p, int64_t out_rows) {
    int64_t top = 0;
#define CASE(rows)                                                                                                     \
    for (; out_rows - top >= rows; top += rows)                                                                        \
        if (kernel)                                                                                                    \
            march(kernel, stride_y, rows, plain, p, top);                                                              \
        else                                                                                                           \
            go_by_taps(rows, p, top);
    TILE_CASES
#undef CASE
}

static void run_band(const pass *p, int64_t out_rows) {
    const coppice_window *w = &p->args->window;
    const int plain = p->args->type == COPPICE_F32 && p->args->activation == COPPICE_CLAMP_ONLY;
    const int square = w->kernel_y == w->kernel_x && w->dilation_y == 1 && p->band->row_step == w->stride_y;
#define KERNEL(kernel, stride)                                                                                         \
    if (square && w->kernel_y == kernel && w->stride_y == stride) {                                                    \
        if (plain)                                                                                                     \
            run_tiles(kernel, stride, 1, p, out_rows);                                                                 \
        else                                                                                                           \
            run_tiles(kernel, stride, 0, p, out_rows);                                                                 \
        return;                                                                                                        \
    }
    KERNEL(3, 1)
    KERNEL(3, 2)
    KERNEL(5, 1)
    KERNEL(5, 2)
#undef KERNEL
    run_tiles(0, 0, 0, p, out_rows);
}

static int64_t source_of(const coppice_depthwise_args *args, int64_t row) {
    return args->sources ? args->sources[row] : row;
}

/* Rows of the result are dealt to the shares where there are enough of them, else the output rows of each. */
static void depthwise_vectors(const coppice_depthwise_args *args) {
    const coppice_window *w = &args->window;
    const int64_t share = args->work.share, shares = args->work.shares, rows = args->rows;
    if (rows == 0 || w->out_height == 0 || w->out_width == 0)
        return;
    const int by_rows = rows >= shares;
    const int64_t end_row = by_rows ? rows * (share + 1) / shares : rows;
    const int64_t begin = by_rows ? 0 : w->out_height * share / shares;
    const int64_t end = by_rows ? w->out_height : w->out_height * (share + 1) / shares;
    const coppice_band band = coppice_band_of(w, COPPICE_DEPTHWISE_ROWS);
    float *room = aligned(args->work.scratch);
    pass p = {.args = args, .band = &band, .from = room};
    for (int64_t row = by_rows ? rows * share / shares : 0, next; row < end_row; row = next) {
        const int64_t source = source_of(args, row);
        for (next = row + 1; next < end_row && source_of(args, next) == source;)
            next++;
        for (p.first = begin; p.first < end; p.first += band.out_rows) {
            const int64_t out_rows = end - p.first < band.out_rows ? end - p.first : band.out_rows;
            pack_band(args->type, args->x, source, w, &band, p.first, out_rows, 0.0f, room);
            for (p.row = row; p.row < next; p.row++)
                run_band(&p, out_rows);
        }
    }
}

#endif
