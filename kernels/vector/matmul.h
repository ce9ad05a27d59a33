/* matmul for vector registers: one algorithm, compiled once per instruction set.
 *
 * The pixels are cut into panels. For one panel and one slab of columns, all bands of the weight pass over the same
 * slab x panel block of x in fp32, which stays in the first- and second-level cache meanwhile: x itself where it suits,
 * else a copy in scratch, which is where 16-bit elements are widened and the windows of a convolution are laid out. A
 * tile, some rows of a band by some vectors of the panel, is held in registers while the band's entries are added;
 * between slabs it rests in y, or in scratch where y holds something else than the bare sums.
 *
 * Before this file come the vectors of the instruction set (x86/avx2.h and the like) and, by what its registers can
 * hold, PANEL_VECTORS(height) and TILE_VECTORS(height), the vectors of the widest panel and of the widest tile, and
 * TILE_CASES, a CASE(rows, vectors, chains) for every tile there is (see run_tiles). */
#ifndef COPPICE_VECTOR_MATMUL_H
#define COPPICE_VECTOR_MATMUL_H

#include "../layouts.h"
#include "matvec.h"
#include "panel.h"
#include "tiles.h"

/* One slab of a panel, and the bands that pass over it. */
typedef struct pass {
    const coppice_matmul_args *args;
    int64_t slab, first_band, end_band;
    const float *values; /* of the first entry of first_band, in fp32 */
    block from;
    panel part;
    float *sums; /* of the panel's first pixel in row 0; they rest here between slabs */
    int64_t stride;
    int in_y; /* sums is y: it starts with bias and residual and ends clamped */
} pass;

/* What sums of `row` begin with: bias and residual at vector `index` of the panel, which has `count` lanes. */
ALWAYS_INLINE vector beginning(const pass *p, int64_t row, int index, int count) {
    const coppice_matmul_args *args = p->args;
    const vector start = args->bias ? broadcast(args->bias[row]) : zero();
    if (!args->residual)
        return start;
    const float *residual = (const float *)args->residual + row * args->residual_stride + p->part.first;
    return add(start, load_part(residual + index * LANES, count));
}

/* `rows` rows of each band, from row `row` of the band on, by `vectors` vectors of the panel from vector `offset` on.
 * `chains` is the number of independent sums of each (against the latency of the addition). The first four arguments
 * are constants wherever this is called, so `sum` lives in registers. What a store to y might change is read before the
 * loops. */
ALWAYS_INLINE void tile(const int rows, const int vectors, const int chains, const int dense, const pass *p,
                        int64_t row, int offset) {
    enum { most_rows = 16, most_vectors = 20, unroll = 4 };
    const coppice_weight *weight = &p->args->weight;
    const int64_t height = rows == 1 ? 1 : weight->height, matrix_rows = weight->rows, x_stride = p->from.stride;
    const uint16_t *columns = weight->columns;
    const float *values = p->values + row;
    const float *from = p->from.x + offset * LANES;
    const int64_t stride = p->stride;
    const int in_y = p->in_y, first_slab = p->slab == 0, last_slab = p->slab + 1 == coppice_slabs(weight);
    const int tail = in_y ? lanes_of(p->part, offset + vectors - 1) : LANES; /* lanes of the last vector */
    const vector lower = broadcast(p->args->lower), upper = broadcast(p->args->upper);
    const uint32_t *starts = dense ? NULL : weight->starts + p->slab * coppice_bands(weight);
    const int64_t width = coppice_slab_width(weight, p->slab);

#define ADD_ENTRY(entry, number, chain)                                                                                \
    do {                                                                                                               \
        const float *x = from + (dense ? (int64_t)(number) : (int64_t)columns[entry]) * x_stride;                      \
        vector held[most_vectors];                                                                                     \
        COPPICE_UNROLL                                                                                                 \
        for (int v = 0; v < vectors && rows > 1; v++)                                                                  \
            held[v] = load(x + v * LANES);                                                                             \
        COPPICE_UNROLL                                                                                                 \
        for (int r = 0; r < rows; r++) {                                                                               \
            const vector value = broadcast(values[r]);                                                                 \
            COPPICE_UNROLL                                                                                             \
            for (int v = 0; v < vectors; v++)                                                                          \
                sum[chain][r][v] = multiply_add(value, rows > 1 ? held[v] : load(x + v * LANES), sum[chain][r][v]);    \
        }                                                                                                              \
        values += height;                                                                                              \
    } while (0)

    for (int64_t band = p->first_band; band < p->end_band; band++) {
        const int64_t top = band * height + row;
        float *sums = p->sums + top * stride + offset * LANES;
        vector sum[unroll][most_rows][most_vectors];
        COPPICE_UNROLL
        for (int r = 0; r < rows; r++) {
            const int inside = rows == 1 || top + r < matrix_rows;
            COPPICE_UNROLL
            for (int v = 0; v < vectors; v++) {
                COPPICE_UNROLL
                for (int chain = 0; chain < chains; chain++)
                    sum[chain][r][v] = zero();
                if (inside && !first_slab)
                    sum[0][r][v] = load_part(sums + r * stride + v * LANES, v + 1 < vectors ? LANES : tail);
                else if (inside && in_y)
                    sum[0][r][v] = beginning(p, top + r, offset + v, v + 1 < vectors ? LANES : tail);
            }
        }
        const size_t first = dense ? coppice_first_entry(weight, p->slab, band) : starts[band];
        const size_t end = dense ? first + (size_t)width : starts[band + 1];
        size_t entry = first;
        for (; end - entry >= unroll; entry += unroll) {
            ADD_ENTRY(entry, entry - first, 0);
            ADD_ENTRY(entry + 1, entry - first + 1, 1 % chains);
            ADD_ENTRY(entry + 2, entry - first + 2, 2 % chains);
            ADD_ENTRY(entry + 3, entry - first + 3, 3 % chains);
        }
        for (; entry < end; entry++)
            ADD_ENTRY(entry, entry - first, 0);
        COPPICE_UNROLL
        for (int r = 0; r < rows; r++) {
            COPPICE_UNROLL
            for (int v = 0; v < vectors; v++) {
                vector total = sum[0][r][v];
                COPPICE_UNROLL
                for (int chain = 1; chain < chains; chain++)
                    total = add(total, sum[chain][r][v]);
                if (in_y && last_slab)
                    total = minimum(upper, maximum(lower, total));
                if (rows == 1 || top + r < matrix_rows)
                    store_part(sums + r * stride + v * LANES, v + 1 < vectors ? LANES : tail, total);
            }
        }
    }
#undef ADD_ENTRY
}

/* TILE_CASES is a CASE(rows, vectors, chains) for every tile. */
static void run_tiles(const int rows, const int vectors, const pass *p, int64_t row, int offset) {
    const int dense = p->args->weight.layout == COPPICE_DENSE;
#define CASE(rows, vectors, chains)                                                                                    \
    case rows * 16 + vectors:                                                                                          \
        if (rows > 1 && dense)                                                                                         \
            tile(rows, vectors, chains, rows > 1, p, row, offset);                                                     \
        else                                                                                                           \
            tile(rows, vectors, chains, 0, p, row, offset);                                                            \
        break;
    switch (rows * 16 + vectors) { TILE_CASES }
#undef CASE
}

/* One pixel of CSR. x and the sums are not in whole vectors. */
static void one_pixel(const pass *p) {
    const coppice_matmul_args *args = p->args;
    const coppice_weight *weight = &args->weight;
    const uint32_t *starts = weight->starts + p->slab * weight->rows;
    const uint16_t *columns = weight->columns;
    const float *values = p->values, *x = p->from.x, *residual = args->residual;
    const int64_t x_stride = p->from.stride;
    const int first_slab = p->slab == 0, last_slab = p->slab + 1 == coppice_slabs(weight);
    for (int64_t row = p->first_band; row < p->end_band; row++) {
        float *rest = p->sums + row * p->stride, sum[4] = {0};
        if (!first_slab)
            sum[0] = *rest;
        else if (p->in_y)
            sum[0] = (args->bias ? args->bias[row] : 0.0f) + (residual ? residual[row * args->residual_stride] : 0.0f);
        size_t entry = starts[row];
        const size_t end = starts[row + 1];
        for (; end - entry >= 4; entry += 4, values += 4)
            for (size_t chain = 0; chain < 4; chain++)
                sum[chain] += values[chain] * x[columns[entry + chain] * x_stride];
        for (; entry < end; entry++, values++)
            sum[0] += *values * x[columns[entry] * x_stride];
        float total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        if (p->in_y && last_slab) {
            total = total < args->lower ? args->lower : total;
            total = total > args->upper ? args->upper : total;
        }
        *rest = total;
    }
}

static void run_bands(const pass *p) {
    if (is_one_pixel(p->args)) {
        one_pixel(p);
        return;
    }
    const int64_t height = p->args->weight.height;
    const int widest = TILE_VECTORS(height), tiles = (p->part.vectors + widest - 1) / widest;
    for (int number = 0; number < tiles; number++) {
        const int offset = number * p->part.vectors / tiles;
        const int vectors = (number + 1) * p->part.vectors / tiles - offset, rows = tile_rows(height, vectors);
        for (int64_t row = 0; row < height; row += rows)
            run_tiles(rows, vectors, p, row, offset);
    }
}

/* Values of 16 or 8 bits are widened for as many bands at a time as fit into `room`. */
static void run_pass(const pass *p, float *room) {
    const coppice_weight *weight = &p->args->weight;
    pass part = *p;
    for (int64_t band = p->first_band; band < p->end_band; band = part.end_band) {
        const size_t first = coppice_first_entry(weight, p->slab, band) * (size_t)weight->height;
        size_t count = 0;
        part.first_band = part.end_band = band;
        do
            count += coppice_entries(weight, p->slab, part.end_band++) * (size_t)weight->height;
        while (part.end_band < p->end_band && weight->type != COPPICE_F32 && count < COPPICE_WIDENED);
        if (weight->type == COPPICE_F32) {
            part.values = (const float *)weight->values + first;
            part.end_band = p->end_band;
        } else {
            part.values = widen(weight->type, weight->values, first, count, room);
        }
        run_bands(&part);
    }
}

/* A copy of one slab of a panel. */
static block packed(const coppice_matmul_args *args, int64_t slab, panel part, float *room) {
    const int64_t first = slab * args->weight.slab, width = coppice_slab_width(&args->weight, slab);
    if (width <= 0) /* the matrix has no column */
        return (block){room, 0};
    if (is_one_pixel(args) && !args->window && args->x_stride == 1) /* side by side, as they are */
        return (block){widen(args->type, args->x, (size_t)first, (size_t)width, room), 1};
    return args->window ? pack_windows(args, first, width, part, room) : pack_rows(args, first, width, part, room);
}

/* The same, where it is if it may stay there. */
static block block_of(const coppice_matmul_args *args, int64_t slab, panel part, float *room) {
    const int64_t first = slab * args->weight.slab, width = coppice_slab_width(&args->weight, slab);
    if (width > 0 && !args->window && args->type == COPPICE_F32) {
        const float *x = (const float *)args->x + first * args->x_stride + part.first;
        if (is_one_pixel(args) || fit_in_place(args, x, sizeof *x, width, part))
            return (block){x, args->x_stride};
    }
    return packed(args, slab, part, room);
}

static void matmul_bands(const coppice_matmul_args *args) {
    const coppice_weight *weight = &args->weight;
    const deal own = deal_of(args, LANES, PANEL_VECTORS(weight->height));
    if (own.first_band == own.end_band || args->pixels == 0)
        return;
    if (is_few_pixels(args)) {
        matvec(args, aligned(args->work.scratch));
        return;
    }
    const int64_t columns = weight->cols < weight->slab ? weight->cols : weight->slab, slabs = coppice_slabs(weight);
    float *room = aligned(args->work.scratch);
    float *widened = aligned(room + columns * COPPICE_PANEL_PIXELS + COPPICE_PANEL_SLACK);
    float *sums = aligned(widened + coppice_widened(weight));
    pass p = {.args = args, .first_band = own.first_band, .end_band = own.end_band};
    p.in_y = args->type == COPPICE_F32 && args->activation == COPPICE_CLAMP_ONLY && !weight->scales;
    outline drawn;
    for (int64_t number = own.first_panel; number < own.end_panel; number++) {
        p.part = panel_of(&own, args->pixels, LANES, number);
        p.part.outline = outline_of(p.part, args->window, &drawn);
        p.stride = p.in_y ? args->y_stride : is_one_pixel(args) ? 1 : (int64_t)p.part.vectors * LANES;
        p.sums = p.in_y ? (float *)args->y + p.part.first : sums;
        for (p.slab = 0; p.slab < slabs; p.slab++) {
            p.from = block_of(args, p.slab, p.part, room);
            run_pass(&p, widened);
        }
        if (!p.in_y)
            finish(args, weight->scales, p.first_band, p.end_band, p.part, p.sums, p.stride);
    }
}

/* CSR of the rows from `row` on: `unpacked` with its lists, which are laid out from `room` on. */
static void unpack_rows(const coppice_weight *weight, int64_t row, coppice_weight *unpacked, int64_t *room) {
    const int64_t rows = unpacked->rows, slabs = coppice_slabs(unpacked);
    int64_t *cursors = room;
    uint32_t *starts = (uint32_t *)(cursors + rows);
    float *values = (float *)(starts + slabs * rows + 1);
    uint16_t *columns = (uint16_t *)(values + rows * unpacked->cols);
    size_t entries = 0;
    memset(cursors, 0, (size_t)rows * sizeof *cursors);
    for (int64_t slab = 0; slab < slabs; slab++)
        for (int64_t r = 0; r < rows; r++) {
            starts[slab * rows + r] = (uint32_t)entries;
            entries += (size_t)coppice_unpack(weight, row + r, slab * unpacked_slab, &cursors[r], columns + entries,
                                              values + entries);
        }
    starts[slabs * rows] = (uint32_t)entries;
    unpacked->starts = starts, unpacked->columns = columns, unpacked->values = values;
    unpacked->entries = (int64_t)entries;
}

/* A layout for few pixels: some rows at a time as CSR, which are multiplied as such. Rows are dealt to the shares. */
static void matmul_unpacked(const coppice_matmul_args *args) {
    const coppice_weight *weight = &args->weight;
    const size_t size = coppice_type_size(args->type);
    coppice_matmul_args part = *args;
    part.weight = coppice_unpacked(weight);
    const int64_t most = part.weight.rows, end = weight->rows * (args->work.share + 1) / args->work.shares;
    int64_t *room = (int64_t *)(void *)aligned(args->work.scratch);
    part.work = (coppice_work){.shares = 1, .scratch = (char *)room + coppice_unpacked_bytes(weight)};
    for (int64_t row = weight->rows * args->work.share / args->work.shares; row < end; row += part.weight.rows) {
        part.weight.rows = end - row < most ? end - row : most;
        part.weight.scales = weight->scales ? weight->scales + row : NULL;
        part.bias = args->bias ? args->bias + row : NULL;
        part.y = (char *)args->y + (size_t)(row * args->y_stride) * size;
        if (args->residual)
            part.residual = (const char *)args->residual + (size_t)(row * args->residual_stride) * size;
        unpack_rows(weight, row, &part.weight, room);
        matmul_bands(&part);
    }
}

static void matmul_vectors(const coppice_matmul_args *args) {
    if (args->pixels > 0 && coppice_is_packed(args->weight.layout))
        matmul_unpacked(args);
    else if (!coppice_is_packed(args->weight.layout))
        matmul_bands(args);
}

#endif
