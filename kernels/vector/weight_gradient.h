/* weight_gradient for vector registers: one algorithm, compiled once per instruction set.
 *
 * The lanes of a vector are pixels, and the sums of a value over the lanes are added up at the end. The pixels are cut
 * into panels; all bands of the weight pass over the same block of x, some columns by one panel, which is laid out in
 * scratch as matmul does it. There are two ways:
 *
 *   sparse of height 1: a panel of dy is so narrow that a row of it fits into registers, where all entries of the row
 *   multiply it. Values follow each other across the rows, so always as many of them as there are lanes are added up
 *   over their lanes together.
 *
 *   higher bands and dense weights: tiles of COPPICE_GRADIENT_ROWS rows by TILE_ENTRIES entries are held in registers
 *   while a panel goes by, whose rows of dy lie in scratch, vector by vector side by side.
 *
 * Before this file come the vectors of the instruction set and, by what its registers can hold, ROW_VECTORS, the
 * vectors of dy in registers, ROW_CASES, a CASE(vectors) for each number of them, and TILE_ENTRIES. */
#ifndef COPPICE_VECTOR_WEIGHT_GRADIENT_H
#define COPPICE_VECTOR_WEIGHT_GRADIENT_H

#include "panel.h"

enum { tile_rows = COPPICE_GRADIENT_ROWS, tile_values = tile_rows * TILE_ENTRIES };

/* A panel of some columns of a slab, and the bands that pass over it. */
typedef struct pass {
    const coppice_weight_gradient_args *args;
    panel part;
    int64_t slab, first_column, columns; /* columns of the slab, from its first_column on */
    int64_t first_band, end_band;
    block from;
    float *dy;     /* room for the rows of a tile */
    int with_bias; /* this pass also adds up dy */
} pass;

ALWAYS_INLINE vector load_dy(const pass *p, int64_t row, int index) {
    const coppice_weight_gradient_args *args = p->args;
    const int64_t place = row * args->dy_stride + p->part.first + index * LANES;
    return load_as(args->type, args->dy, place, lanes_of(p->part, index));
}

/* Values that follow each other from `to` on, each still one sum a lane. */
typedef struct spread {
    vector sums[LANES];
    int count;
    float *to;
} spread;

static void gather(spread *held) {
    const vector total = add(load_part(held->to, held->count), sums_of_lanes(held->sums));
    store_part(held->to, held->count, total);
    held->to += held->count;
    held->count = 0;
}

/* All entries of a row of height 1, of which `vectors` vectors of dy are in registers. */
ALWAYS_INLINE void add_row(const int vectors, const pass *p, int64_t row, spread *held) {
    const coppice_weight *weight = &p->args->weight;
    const uint32_t *starts = weight->starts + p->slab * weight->rows + row;
    const uint16_t *columns = weight->columns;
    const float *from = p->from.x;
    const int64_t stride = p->from.stride;
    vector dy[ROW_VECTORS];
    COPPICE_UNROLL
    for (int v = 0; v < vectors; v++)
        dy[v] = load_dy(p, row, v);
    if (p->with_bias) {
        vector sum = dy[0];
        COPPICE_UNROLL
        for (int v = 1; v < vectors; v++)
            sum = add(sum, dy[v]);
        p->args->bias[row] += sum_lanes(sum);
    }
    for (uint32_t entry = starts[0], end = starts[1]; entry < end;) {
        const uint32_t room = (uint32_t)(LANES - held->count), stop = end - entry < room ? end : entry + room;
        vector *sums = held->sums + held->count;
        held->count += (int)(stop - entry);
        for (; entry < stop; entry++, sums++) {
            const float *x = from + columns[entry] * stride;
            vector sum = multiply(dy[0], load(x));
            COPPICE_UNROLL
            for (int v = 1; v < vectors; v++)
                sum = multiply_add(dy[v], load(x + v * LANES), sum);
            *sums = sum;
        }
        if (held->count == LANES)
            gather(held);
    }
}

ALWAYS_INLINE void add_rows(const int vectors, const pass *p) {
    const coppice_weight *weight = &p->args->weight;
    spread held = {.to = p->args->gradient + coppice_first_entry(weight, p->slab, p->first_band)};
    for (int lane = 0; lane < LANES; lane++)
        held.sums[lane] = zero();
    for (int64_t row = p->first_band; row < p->end_band; row++)
        add_row(vectors, p, row, &held);
    if (held.count > 0)
        gather(&held);
}

static void run_rows(const pass *p) {
#define CASE(vectors)                                                                                                  \
    case vectors:                                                                                                      \
        add_rows(vectors, p);                                                                                          \
        break;
    switch (p->part.vectors) { ROW_CASES }
#undef CASE
}

/* A tile that has its values at gradient[entry * entry_step + row * row_step]. */
typedef struct tile {
    float *gradient;
    int64_t entry_step, row_step;
    int rows; /* tile_rows or fewer */
} tile;

/* dy[vector][tile_rows][LANES] = the rows of a tile from `row` on, zero where there are fewer. */
static void lay_out(const pass *p, int64_t row, int rows) {
    for (int r = 0; r < tile_rows; r++) {
        vector sum = zero();
        for (int v = 0; v < p->part.vectors; v++) {
            const vector dy = r < rows ? load_dy(p, row + r, v) : zero();
            store(p->dy + (v * tile_rows + r) * LANES, dy);
            sum = add(sum, dy);
        }
        if (p->with_bias && r < rows)
            p->args->bias[row + r] += sum_lanes(sum);
    }
}

/* `count` entries of a tile, TILE_ENTRIES or fewer, whose columns of x begin at x[0 .. TILE_ENTRIES - 1]. */
static void add_tile(const pass *p, const tile *to, const float *const *x, int count) {
    vector sum[tile_values];
    const float *dy = p->dy;
    COPPICE_UNROLL
    for (int i = 0; i < tile_values; i++)
        sum[i] = zero();
    for (int64_t at = 0; at < p->from.stride; at += LANES, dy += tile_rows * LANES) {
        vector held[TILE_ENTRIES];
        COPPICE_UNROLL
        for (int e = 0; e < TILE_ENTRIES; e++)
            held[e] = load(x[e] + at);
        COPPICE_UNROLL
        for (int r = 0; r < tile_rows; r++) {
            const vector value = load(dy + r * LANES);
            COPPICE_UNROLL
            for (int e = 0; e < TILE_ENTRIES; e++)
                sum[e * tile_rows + r] = multiply_add(value, held[e], sum[e * tile_rows + r]);
        }
    }
    float total[tile_values];
    COPPICE_UNROLL
    for (int i = 0; i < tile_values; i += LANES)
        store(total + i, sums_of_lanes(sum + i));
    for (int e = 0; e < count; e++)
        for (int r = 0; r < to->rows; r++)
            to->gradient[e * to->entry_step + r * to->row_step] += total[e * tile_rows + r];
}

/* `entries` entries of some rows; of a sparse weight `columns` says where they are. */
static void add_tiles(const pass *p, tile to, const uint16_t *columns, int64_t entries) {
    for (int64_t entry = 0; entry < entries; entry += TILE_ENTRIES) {
        const int count = (int)(entries - entry < TILE_ENTRIES ? entries - entry : TILE_ENTRIES);
        const float *x[TILE_ENTRIES];
        for (int e = 0; e < TILE_ENTRIES; e++) {
            const int64_t number = entry + (e < count ? e : 0);
            x[e] = p->from.x + (columns ? columns[number] : number) * p->from.stride;
        }
        add_tile(p, &to, x, count);
        to.gradient += TILE_ENTRIES * to.entry_step;
    }
}

static int rows_left(int64_t row, int64_t end) {
    return end - row < tile_rows ? (int)(end - row) : tile_rows;
}

/* Bands of several rows. */
static void run_bands(const pass *p) {
    const coppice_weight *weight = &p->args->weight;
    const int64_t height = weight->height;
    for (int64_t band = p->first_band; band < p->end_band; band++) {
        const int64_t end = (band + 1) * height < weight->rows ? (band + 1) * height : weight->rows;
        const size_t first = coppice_first_entry(weight, p->slab, band) + (size_t)p->first_column;
        const int sparse = weight->layout == COPPICE_SPARSE;
        const int64_t entries = sparse ? (int64_t)coppice_entries(weight, p->slab, band) : p->columns;
        for (int64_t row = band * height; row < end; row += tile_rows) {
            const tile to = {p->args->gradient + (int64_t)first * height + row % height, height, 1,
                             rows_left(row, end)};
            lay_out(p, row, to.rows);
            add_tiles(p, to, sparse ? weight->columns + first : NULL, entries);
        }
    }
}

/* The rows of a plain matrix. */
static void run_plain(const pass *p) {
    const coppice_weight *weight = &p->args->weight;
    const int64_t width = coppice_slab_width(weight, p->slab);
    for (int64_t row = p->first_band; row < p->end_band; row += tile_rows) {
        const size_t first = coppice_first_entry(weight, p->slab, row) + (size_t)p->first_column;
        const tile to = {p->args->gradient + first, 1, width, rows_left(row, p->end_band)};
        lay_out(p, row, to.rows);
        add_tiles(p, to, NULL, p->columns);
    }
}

static void run_pass(pass *p, const coppice_matmul_args *source, float *room) {
    const coppice_weight *weight = &p->args->weight;
    const int64_t first = p->slab * weight->slab + p->first_column;
    p->from = (block){room, (int64_t)p->part.vectors * LANES};
    p->with_bias = p->args->bias && first == 0;
    if (p->columns > 0)
        p->from = source->window ? pack_windows(source, first, p->columns, p->part, room)
                                 : pack_rows(source, first, p->columns, p->part, room);
    if (weight->height > 1)
        run_bands(p);
    else if (weight->layout == COPPICE_DENSE)
        run_plain(p);
    else
        run_rows(p);
}

static void weight_gradient_vectors(const coppice_weight_gradient_args *args) {
    const coppice_weight *weight = &args->weight;
    const int64_t bands = coppice_bands(weight), share = args->work.share, shares = args->work.shares;
    const int in_rows = weight->layout == COPPICE_SPARSE && weight->height == 1;
    const int64_t fitting = coppice_gradient_pixels(weight) / LANES;
    const int64_t widest = in_rows && fitting > ROW_VECTORS ? ROW_VECTORS : fitting;
    const int64_t vectors = (args->pixels + LANES - 1) / LANES, panels = (vectors + widest - 1) / widest;
    const deal own = {vectors, panels, 0, panels, bands * share / shares, bands * (share + 1) / shares};
    const coppice_matmul_args source = {
        .weight = *weight, .type = args->type, .x = args->x, .x_stride = args->x_stride, .window = args->window};
    const int64_t most = coppice_gradient_columns(weight), slabs = coppice_slabs(weight);
    float *dy = aligned(args->work.scratch), *room = dy + tile_rows * coppice_gradient_pixels(weight);
    if (own.first_band == own.end_band)
        return;
    if (!args->accumulate)
        coppice_gradient_clear(args, own.first_band, own.end_band);
    pass p = {.args = args, .first_band = own.first_band, .end_band = own.end_band, .dy = dy};
    for (int64_t number = 0; number < panels; number++) {
        p.part = panel_of(&own, args->pixels, LANES, number);
        for (p.slab = 0; p.slab < slabs; p.slab++) {
            const int64_t width = coppice_slab_width(weight, p.slab);
            p.first_column = 0;
            do {
                p.columns = width - p.first_column < most ? width - p.first_column : most;
                run_pass(&p, &source, room);
                p.first_column += p.columns;
            } while (p.first_column < width);
        }
    }
}

#endif
