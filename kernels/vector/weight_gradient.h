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
 *   higher bands and dense weights: tiles of four values that follow each other by up to TILE_WIDTH are held in
 *   registers while a panel goes by. The four are rows of a band, which TILE_WIDTH columns multiply, or columns of a
 *   plain matrix, which TILE_WIDTH rows do. Rows of dy are laid out in scratch as columns of x are.
 *
 * Where there is one vector of pixels, the second way has values in its lanes (outer.h).
 *
 * Before this file come the vectors of the instruction set and, by what its registers can hold, ROW_VECTORS, the
 * vectors of dy in registers, ROW_CHAINS, the independent sums of an entry, ROW_CASES, a CASE(vectors) for each number
 * of them, TILE_WIDTH, and TILE_CASES, a CASE(width) for each width. */
#ifndef COPPICE_VECTOR_WEIGHT_GRADIENT_H
#define COPPICE_VECTOR_WEIGHT_GRADIENT_H

#include "outer.h"
#include "panel.h"

enum { four = 4 };

/* A panel of some columns of a slab, and the bands that pass over it. */
typedef struct pass {
    const coppice_weight_gradient_args *args;
    panel part;
    int64_t slab, first_column, columns; /* columns of the slab, from its first_column on */
    int64_t first_band, end_band;
    block from;
    float *dy;     /* room for COPPICE_GRADIENT_ROWS rows */
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
    if (p->args->type == COPPICE_F32 && !p->part.tail) {
        const float *whole = (const float *)p->args->dy + row * p->args->dy_stride + p->part.first;
        COPPICE_UNROLL
        for (int v = 0; v < vectors; v++)
            dy[v] = load(whole + v * LANES);
    } else {
        COPPICE_UNROLL
        for (int v = 0; v < vectors; v++)
            dy[v] = load_dy(p, row, v);
    }
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
            vector sum[ROW_CHAINS];
            COPPICE_UNROLL
            for (int v = 0; v < vectors; v++) {
                const vector held_x = load(x + v * LANES);
                const int chain = v % ROW_CHAINS;
                sum[chain] = v < ROW_CHAINS ? multiply(dy[v], held_x) : multiply_add(dy[v], held_x, sum[chain]);
            }
            *sums = ROW_CHAINS > 1 && vectors > 1 ? add(sum[0], sum[ROW_CHAINS - 1]) : sum[0];
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

/* Vectors of a panel for rows: as many as registers hold where the block of x fits into the first-level cache; else a
 * narrower one leaves less to the second-level cache. */
static int64_t row_vectors(const coppice_weight *weight, int64_t fitting) {
    enum { near = 8192, usual = 128 / LANES };
    const int64_t floats = coppice_gradient_columns(weight) * ROW_VECTORS * LANES;
    const int64_t most = floats > near && usual < ROW_VECTORS ? usual : ROW_VECTORS;
    return fitting < most ? fitting : most;
}

static void run_rows(const pass *p) {
#define CASE(vectors)                                                                                                  \
    case vectors:                                                                                                      \
        add_rows(vectors, p);                                                                                          \
        break;
    switch (p->part.vectors) { ROW_CASES }
#undef CASE
}

/* p->dy[count][stride] = the rows of dy from `row` on, zero where there are only `rows`. */
static void lay_out(const pass *p, int64_t row, int rows, int count) {
    for (int r = 0; r < count; r++) {
        float *to = p->dy + r * p->from.stride;
        vector sum = zero();
        for (int v = 0; v < p->part.vectors; v++) {
            const vector dy = r < rows ? load_dy(p, row + r, v) : zero();
            store(to + v * LANES, dy);
            sum = add(sum, dy);
        }
        if (p->with_bias && r < rows)
            p->args->bias[row + r] += sum_lanes(sum);
    }
}

/* Adds to values[i][0 .. count - 1], `step` apart, the products of others[i] by those of `beside`, which stand `stride`
 * apart and are four, whatever the count. */
ALWAYS_INLINE void add_tile(const int width, const float *beside, int64_t stride, const float *const *others,
                            float *values, int64_t step, int count) {
    vector sum[TILE_WIDTH][four];
    COPPICE_UNROLL
    for (int i = 0; i < width; i++) {
        COPPICE_UNROLL
        for (int n = 0; n < four; n++)
            sum[i][n] = zero();
    }
    for (int64_t at = 0; at < stride; at += LANES) {
        vector held[TILE_WIDTH];
        COPPICE_UNROLL
        for (int i = 0; i < width; i++)
            held[i] = load(others[i] + at);
        COPPICE_UNROLL
        for (int n = 0; n < four; n++) {
            const vector one = load(beside + n * stride + at);
            COPPICE_UNROLL
            for (int i = 0; i < width; i++)
                sum[i][n] = multiply_add(one, held[i], sum[i][n]);
        }
    }
    COPPICE_UNROLL
    for (int i = 0; i < width; i++, values += step) {
        float total[four];
        sums_of_four(sum[i], total);
        for (int n = 0; n < four && count == four; n++)
            values[n] += total[n];
        for (int n = 0; n < count && count < four; n++)
            values[n] += total[n];
    }
}

static void add_tile_of(int width, const float *beside, int64_t stride, const float *const *others, float *values,
                        int64_t step, int count) {
#define CASE(width)                                                                                                    \
    case width:                                                                                                        \
        add_tile(width, beside, stride, others, values, step, count);                                                  \
        break;
    switch (width) { TILE_CASES }
#undef CASE
}

static int up_to(int most, int64_t left) {
    return left < most ? (int)left : most;
}

/* Entries of a band in a block of x. */
typedef struct list {
    int64_t entries;
    const uint16_t *columns; /* NULL: one after the other */
    float *values;
} list;

static list list_of(const pass *p, int64_t band) {
    const coppice_weight *weight = &p->args->weight;
    const size_t first = coppice_first_entry(weight, p->slab, band) + (size_t)p->first_column;
    float *values = p->args->gradient + first * (size_t)weight->height;
    if (weight->layout == COPPICE_DENSE)
        return (list){p->columns, NULL, values};
    return (list){(int64_t)coppice_entries(weight, p->slab, band), weight->columns + first, values};
}

/* Some rows of a band, from row `row` of it on, four at most. */
static void add_tiles(const pass *p, const list *own, int64_t row, int rows) {
    const int64_t height = p->args->weight.height, stride = p->from.stride;
    for (int64_t entry = 0; entry < own->entries; entry += TILE_WIDTH) {
        const int width = up_to(TILE_WIDTH, own->entries - entry);
        const float *x[TILE_WIDTH];
        for (int i = 0; i < width; i++)
            x[i] = p->from.x + (own->columns ? own->columns[entry + i] : entry + i) * stride;
        add_tile_of(width, p->dy, stride, x, own->values + entry * height + row, height, rows);
    }
}

/* All rows of a band, of one vector of pixels. Where dy has its room there is enough for sixteen rows of a vector and
 * for as much again: panels have four of the widest vectors at least. */
static void add_outer(const pass *p, const list *own, int64_t row) {
    const int64_t height = p->args->weight.height, step = height < LANES ? height : LANES;
    const int pixels = lanes_of(p->part, 0);
    float *turned = p->dy + height * LANES;
    lay_out(p, row, (int)height, (int)height);
    for (int64_t top = 0; top < height; top += step) {
        turn(p->dy + top * p->from.stride, p->from.stride, height, pixels, turned);
        if (height == 4)
            outer_band(4, turned, p->from, own->columns, own->entries, pixels, own->values);
        else if (height == 8)
            outer_band(8, turned, p->from, own->columns, own->entries, pixels, own->values + top);
        else
            outer_band(16, turned, p->from, own->columns, own->entries, pixels, own->values + top);
    }
}

/* Bands of several rows: the entries of a band multiply four of its rows at a time, or all where pixels are few. */
static void run_bands(const pass *p) {
    const coppice_weight *weight = &p->args->weight;
    const int64_t height = weight->height;
    for (int64_t band = p->first_band; band < p->end_band; band++) {
        const int64_t first = band * height, end = first + height < weight->rows ? first + height : weight->rows;
        const list own = list_of(p, band);
        if (p->part.vectors == 1 && lanes_of(p->part, 0) <= height && end - first == height) {
            add_outer(p, &own, first);
            continue;
        }
        for (int64_t row = first; row < end; row += four) {
            const int rows = up_to(four, end - row);
            lay_out(p, row, rows, four);
            add_tiles(p, &own, row - first, rows);
        }
    }
}

/* The rows of a plain matrix multiply four of its columns at a time; past its last there is room in scratch. */
static void run_plain(const pass *p) {
    const int64_t step = coppice_slab_width(&p->args->weight, p->slab), stride = p->from.stride;
    for (int64_t row = p->first_band; row < p->end_band; row += TILE_WIDTH) {
        const int rows = up_to(TILE_WIDTH, p->end_band - row);
        const list own = list_of(p, row);
        const float *dy[TILE_WIDTH];
        for (int r = 0; r < rows; r++)
            dy[r] = p->dy + r * stride;
        lay_out(p, row, rows, rows);
        for (int64_t column = 0; column < p->columns; column += four)
            add_tile_of(rows, p->from.x + column * stride, stride, dy, own.values + column, step,
                        up_to(four, p->columns - column));
    }
}

/* The same where pixels are few: lanes are columns. */
static void run_plain_outer(const pass *p, float *room) {
    const int64_t step = coppice_slab_width(&p->args->weight, p->slab), stride = p->from.stride;
    const int64_t pitch = (p->columns + LANES - 1) / LANES * LANES;
    const int pixels = lanes_of(p->part, 0);
    turn_block(p->from, p->columns, pixels, pitch, room);
    for (int64_t row = p->first_band; row < p->end_band; row += outer_rows) {
        const int rows = up_to(outer_rows, p->end_band - row);
        const list own = list_of(p, row);
        lay_out(p, row, rows, rows);
        if (rows == outer_rows)
            outer_rows_of(outer_rows, p->dy, stride, room, pitch, p->columns, pixels, own.values, step);
        else
            outer_rows_of(rows, p->dy, stride, room, pitch, p->columns, pixels, own.values, step);
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
    else if (weight->layout == COPPICE_DENSE && p->part.vectors == 1)
        run_plain_outer(p, room + p->columns * LANES);
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
    const int64_t widest = in_rows ? row_vectors(weight, fitting) : fitting;
    const int64_t vectors = (args->pixels + LANES - 1) / LANES, panels = (vectors + widest - 1) / widest;
    const deal own = {vectors, panels, 0, panels, bands * share / shares, bands * (share + 1) / shares};
    const coppice_matmul_args source = {
        .weight = *weight, .type = args->type, .x = args->x, .x_stride = args->x_stride, .window = args->window};
    const int64_t most = coppice_gradient_columns(weight), slabs = coppice_slabs(weight);
    float *dy = aligned(args->work.scratch), *room = dy + COPPICE_GRADIENT_ROWS * coppice_gradient_pixels(weight);
    if (own.first_band == own.end_band)
        return;
    if (!args->accumulate)
        coppice_gradient_clear(args, own.first_band, own.end_band);
    pass p = {.args = args, .first_band = own.first_band, .end_band = own.end_band, .dy = dy};
    outline drawn;
    for (int64_t number = 0; number < panels; number++) {
        p.part = panel_of(&own, args->pixels, LANES, number);
        p.part.outline = outline_of(p.part, args->window, &drawn);
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
