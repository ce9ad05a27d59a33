/* matmul in fp16 arithmetic for vector registers: x and weight are fp16, sums of at most SUMMED entries are too.
 *
 * As in matmul.h, bands pass over a block of x, here of fp16. A tile's sums are added to fp32 sums in scratch after
 * every SUMMED entries and at the end of a slab, which bounds their error as abi.h says.
 *
 * Before this file come the vectors of the instruction set, halves among them (arm/neon_fp16.h and the like), and
 * HALF_PANEL_VECTORS(height), HALF_TILE_VECTORS(height) and TILE_CASES: what matmul.h wants, in vectors of halves. */
#ifndef COPPICE_VECTOR_MATMUL_F16_H
#define COPPICE_VECTOR_MATMUL_F16_H

#include "../layouts.h"
#include "panel.h"
#include "tiles.h"

#define SUMMED 128

/* One slab of a panel. */
typedef struct half_pass {
    const coppice_matmul_args *args;
    int64_t slab, first_band, end_band;
    const uint16_t *x; /* [columns of the slab][x_stride] */
    int64_t x_stride;
    int vectors; /* of halves, of the panel */
    float *sums; /* [rows][stride] */
    int64_t stride;
} half_pass;

/* Adds a tile's sums to those in scratch; `begin`: there are none yet. */
ALWAYS_INLINE void flush(float *to, halves sum, int begin) {
    const vector low = half_low(sum), high = half_high(sum);
    store(to, begin ? low : add(load(to), low));
    store(to + LANES, begin ? high : add(load(to + LANES), high));
}

/* The arguments as of tile() in matmul.h. Rows past the matrix have sums in scratch too. */
ALWAYS_INLINE void half_tile(const int rows, const int vectors, const int chains, const int dense, const half_pass *p,
                             int64_t row, int offset) {
    enum { most_rows = 16, most_vectors = 12, unroll = 4 };
    const coppice_weight *weight = &p->args->weight;
    const int64_t height = rows == 1 ? 1 : weight->height, x_stride = p->x_stride, stride = p->stride;
    const uint16_t *columns = weight->columns, *from = p->x + offset * HALF_LANES;

#define ADD_ENTRY(entry, chain)                                                                                        \
    do {                                                                                                               \
        const uint16_t *x = from + (dense ? (int64_t)((entry) - first) : (int64_t)columns[entry]) * x_stride;          \
        halves held[most_vectors];                                                                                     \
        COPPICE_UNROLL                                                                                                 \
        for (int v = 0; v < vectors && rows > 1; v++)                                                                  \
            held[v] = half_load(x + v * HALF_LANES);                                                                   \
        COPPICE_UNROLL                                                                                                 \
        for (int r = 0; r < rows; r++) {                                                                               \
            const halves value = half_broadcast(values + r);                                                           \
            COPPICE_UNROLL                                                                                             \
            for (int v = 0; v < vectors; v++)                                                                          \
                sum[chain][r][v] =                                                                                     \
                    half_multiply_add(value, rows > 1 ? held[v] : half_load(x + v * HALF_LANES), sum[chain][r][v]);    \
        }                                                                                                              \
        values += height;                                                                                              \
    } while (0)

    for (int64_t band = p->first_band; band < p->end_band; band++) {
        float *sums = p->sums + (band * height + row) * stride + offset * HALF_LANES;
        const size_t first = coppice_first_entry(weight, p->slab, band);
        const size_t end = first + coppice_entries(weight, p->slab, band);
        const uint16_t *values = (const uint16_t *)weight->values + first * (size_t)height + row;
        size_t entry = first;
        int begin = p->slab == 0;
        do {
            const size_t stop = end - entry < SUMMED ? end : entry + SUMMED;
            halves sum[unroll][most_rows][most_vectors];
            COPPICE_UNROLL
            for (int chain = 0; chain < chains; chain++) {
                COPPICE_UNROLL
                for (int r = 0; r < rows; r++) {
                    COPPICE_UNROLL
                    for (int v = 0; v < vectors; v++)
                        sum[chain][r][v] = half_zero();
                }
            }
            for (; stop - entry >= unroll; entry += unroll) {
                ADD_ENTRY(entry, 0);
                ADD_ENTRY(entry + 1, 1 % chains);
                ADD_ENTRY(entry + 2, 2 % chains);
                ADD_ENTRY(entry + 3, 3 % chains);
            }
            for (; entry < stop; entry++)
                ADD_ENTRY(entry, 0);
            COPPICE_UNROLL
            for (int r = 0; r < rows; r++) {
                COPPICE_UNROLL
                for (int v = 0; v < vectors; v++) {
                    halves total = sum[0][r][v];
                    COPPICE_UNROLL
                    for (int chain = 1; chain < chains; chain++)
                        total = half_add(total, sum[chain][r][v]);
                    flush(sums + r * stride + v * HALF_LANES, total, begin);
                }
            }
            begin = 0;
        } while (entry < end);
    }
#undef ADD_ENTRY
}

static void run_half_tiles(const int rows, const int vectors, const half_pass *p, int64_t row, int offset) {
    const int dense = p->args->weight.layout == COPPICE_DENSE;
#define CASE(rows, vectors, chains)                                                                                    \
    case rows * 16 + vectors:                                                                                          \
        if (rows > 1 && dense)                                                                                         \
            half_tile(rows, vectors, chains, rows > 1, p, row, offset);                                                \
        else                                                                                                           \
            half_tile(rows, vectors, chains, 0, p, row, offset);                                                       \
        break;
    switch (rows * 16 + vectors) { TILE_CASES }
#undef CASE
}

static void run_half_bands(const half_pass *p) {
    const int64_t height = p->args->weight.height;
    const int widest = HALF_TILE_VECTORS(height), tiles = (p->vectors + widest - 1) / widest;
    for (int number = 0; number < tiles; number++) {
        const int offset = number * p->vectors / tiles;
        const int vectors = (number + 1) * p->vectors / tiles - offset, rows = tile_rows(height, vectors);
        for (int64_t row = 0; row < height; row += rows)
            run_half_tiles(rows, vectors, p, row, offset);
    }
}

/* The block of x that the bands pass over: x itself where it suits, else a copy in `room`. */
static void set_half_block(half_pass *p, panel part, uint16_t *room) {
    const coppice_matmul_args *args = p->args;
    const int64_t first = p->slab * args->weight.slab, width = coppice_slab_width(&args->weight, p->slab);
    const int64_t pixels = pixels_of(part, HALF_LANES), stride = (int64_t)part.vectors * HALF_LANES;
    p->x = room;
    p->x_stride = stride;
    if (width <= 0) /* the matrix has no column */
        return;
    if (args->window) {
        copy_windows(COPPICE_F16, COPPICE_F16, args, first, width, part.first, pixels, stride, room);
        return;
    }
    const uint16_t *x = (const uint16_t *)args->x + first * args->x_stride + part.first;
    if (fit_in_place(args, x, sizeof *x, width, part)) {
        p->x = x;
        p->x_stride = args->x_stride;
        return;
    }
    for (int64_t column = 0; column < width; column++) {
        copy(COPPICE_F16, COPPICE_F16, x, column * args->x_stride, 1, pixels, room, column * stride);
        clear(COPPICE_F16, room, column * stride + pixels, stride - pixels);
    }
}

/* fp16 arithmetic is allowed, of fp16 x and weight, and of some use. */
static int allows_halves(const coppice_matmul_args *args) {
    return args->arithmetic == COPPICE_F16 && args->type == COPPICE_F16 && args->weight.type == COPPICE_F16 &&
           !coppice_is_packed(args->weight.layout) && lanes_are_pixels(args);
}

/* For such arguments. */
static void matmul_halves(const coppice_matmul_args *args) {
    const coppice_weight *weight = &args->weight;
    const deal own = deal_of(args, HALF_LANES, HALF_PANEL_VECTORS(weight->height));
    if (own.first_band == own.end_band)
        return;
    const int64_t columns = weight->cols < weight->slab ? weight->cols : weight->slab, slabs = coppice_slabs(weight);
    float *room = aligned(args->work.scratch);
    float *sums = aligned(room + columns * COPPICE_PANEL_PIXELS + COPPICE_PANEL_SLACK);
    half_pass p = {.args = args, .first_band = own.first_band, .end_band = own.end_band, .sums = sums};
    for (int64_t number = own.first_panel; number < own.end_panel; number++) {
        const panel part = panel_of(&own, args->pixels, HALF_LANES, number);
        const int64_t pixels = pixels_of(part, HALF_LANES);
        p.vectors = part.vectors;
        p.stride = (int64_t)part.vectors * HALF_LANES;
        for (p.slab = 0; p.slab < slabs; p.slab++) {
            set_half_block(&p, part, (uint16_t *)room);
            run_half_bands(&p);
        }
        const panel singles = {part.first, (int)((pixels + LANES - 1) / LANES), (int)(pixels % LANES), NULL};
        finish(args, weight->scales, p.first_band, p.end_band, singles, p.sums, p.stride);
    }
}

#endif
