/* matmul where one instruction adds DEPTH products of narrow elements to each sum: pairs of bf16, or fours of bytes.
 *
 * As in matmul.h, bands pass over a block of x, here of narrow elements. A group is DEPTH entries of a band. Dense
 * weights meet x in groups as well: DEPTH columns side by side for each pixel. For sparse ones the columns of a group
 * are anywhere; each is a row of x in scratch, and the registers that hold DEPTH of them are interleaved as they are
 * loaded. The weight is brought into groups a few bands at a time. Sums of a slab are added to fp32 sums in scratch.
 *
 * Before this file come those that narrow.h needs and, by what the registers can hold, DOT_PANEL_VECTORS(dense) and
 * TILE_CASES, a CASE(rows, vectors, chains) for every tile; a sparse weight uses those of a multiple of DEPTH. */
#ifndef COPPICE_VECTOR_MATMUL_DOT_H
#define COPPICE_VECTOR_MATMUL_DOT_H

#include "narrow.h"
#include "tiles.h"

/* The sums of so many rows are finished while they are in the first-level cache. */
enum { grouped_rows = 32 };

/* One slab of a panel, and some bands that pass over it. */
typedef struct dot_pass {
    const coppice_matmul_args *args;
    int64_t slab, first_band, end_band;
    const char *x;       /* [columns or groups of the slab][pitch] */
    int64_t pitch;       /* bytes */
    const char *groups;  /* of first_band to end_band, each band after what its sums begin with */
    const float *scales; /* of the pixels */
    float *sums;         /* [rows][stride], of row 0 */
    int64_t stride;
} dot_pass;

/* The bands from `band` on that fit into scratch, in groups; returns the band after the last. */
static int64_t group_bands(const coppice_weight *weight, narrows order, int64_t slab, int64_t band, int64_t end,
                           char *to) {
    const char *first = to;
    const int64_t most = band + (grouped_rows + weight->height - 1) / weight->height;
    do {
        const size_t entries = coppice_entries(weight, slab, band), height = (size_t)weight->height;
        const size_t from = coppice_first_entry(weight, slab, band) * height;
        write_groups(weight, order, from, entries * height, to);
        to += band_bytes(weight->height, entries);
        band++;
    } while (band < end && band < most && to - first < COPPICE_GROUPED);
    return band;
}

/* The arguments as of tile() in matmul.h. Rows past the matrix have sums in scratch too. */
ALWAYS_INLINE void dot_tile(const int rows, const int vectors, const int chains, const int dense, const dot_pass *p,
                            int64_t row) {
    enum { most_rows = 16, most_vectors = 6, most_chains = 4 };
    const coppice_weight *weight = &p->args->weight;
    const int64_t height = rows == 1 ? 1 : weight->height, pitch = p->pitch, stride = p->stride;
    const int begin = p->slab == 0;
    const uint16_t *columns = weight->columns;
    const char *from = p->x, *groups = p->groups;

#define ADD_GROUP(number, entry, count, chain)                                                                         \
    do {                                                                                                               \
        narrows x[most_vectors];                                                                                       \
        COPPICE_UNROLL                                                                                                 \
        for (int v = 0; v < vectors; v += dense ? 1 : DEPTH) {                                                         \
            if (dense) {                                                                                               \
                x[v] = narrow_load(from + (int64_t)(number) * pitch + v * register_bytes);                             \
                continue;                                                                                              \
            }                                                                                                          \
            COPPICE_UNROLL                                                                                             \
            for (int c = 0; c < DEPTH; c++)                                                                            \
                x[v + c] = c < (count)                                                                                 \
                               ? narrow_load(from + columns[(entry) + (size_t)c] * pitch + v / DEPTH * register_bytes) \
                               : narrow_zero();                                                                        \
            interleave(x + v);                                                                                         \
        }                                                                                                              \
        COPPICE_UNROLL                                                                                                 \
        for (int r = 0; r < rows; r++) {                                                                               \
            const narrows value = spread(groups + ((int64_t)(number) * height + row + r) * DOT_BYTES);                 \
            COPPICE_UNROLL                                                                                             \
            for (int v = 0; v < vectors; v++)                                                                          \
                sum[chain][r][v] = dot(sum[chain][r][v], x[v], value);                                                 \
        }                                                                                                              \
    } while (0)

    for (int64_t band = p->first_band; band < p->end_band; band++) {
        const size_t entries = coppice_entries(weight, p->slab, band);
        const size_t first = dense ? 0 : coppice_first_entry(weight, p->slab, band);
        const size_t whole = dense ? groups_of(entries) : entries / DEPTH;
        dots sum[most_chains][most_rows][most_vectors];
        COPPICE_UNROLL
        for (int r = 0; r < rows; r++) {
            COPPICE_UNROLL
            for (int v = 0; v < vectors; v++) {
                sum[0][r][v] = dot_beginning(groups, row + r);
                COPPICE_UNROLL
                for (int chain = 1; chain < chains; chain++)
                    sum[chain][r][v] = dot_zero();
            }
        }
        groups += height * DOT_HEAD;
        size_t number = 0;
        for (; whole - number >= (size_t)chains; number += (size_t)chains) {
            COPPICE_UNROLL
            for (int chain = 0; chain < chains; chain++)
                ADD_GROUP(number + (size_t)chain, first + (number + (size_t)chain) * DEPTH, DEPTH, chain);
        }
        for (; number < whole; number++)
            ADD_GROUP(number, first + number * DEPTH, DEPTH, 0);
        if (!dense && entries % DEPTH > 0)
            ADD_GROUP(number, first + number * DEPTH, (int)(entries % DEPTH), 0);
        groups += height * DOT_BYTES * (int64_t)groups_of(entries);
        float *sums = p->sums + (band * height + row) * stride;
        COPPICE_UNROLL
        for (int r = 0; r < rows; r++) {
            COPPICE_UNROLL
            for (int v = 0; v < vectors; v++) {
                COPPICE_UNROLL
                for (int chain = 1; chain < chains; chain++)
                    sum[0][r][v] = dot_add(sum[0][r][v], sum[chain][r][v]);
                add_sum(sum[0][r][v], p->scales + v * LANES, begin, sums + r * stride + v * LANES);
            }
        }
    }
#undef ADD_GROUP
}

static void run_dot_tiles(const int rows, const int vectors, const dot_pass *p, int64_t row) {
    const int dense = p->args->weight.layout == COPPICE_DENSE;
#define CASE(rows, vectors, chains)                                                                                    \
    case rows * 16 + vectors:                                                                                          \
        if (rows > 1 && dense)                                                                                         \
            dot_tile(rows, vectors, chains, rows > 1, p, row);                                                         \
        else if (vectors % DEPTH == 0)                                                                                 \
            dot_tile(rows, vectors / DEPTH * DEPTH, chains, 0, p, row);                                                \
        break;
    switch (rows * 16 + vectors) { TILE_CASES }
#undef CASE
}

/* For arguments that allow it. */
static void matmul_dots(const coppice_matmul_args *args) {
    const coppice_weight *weight = &args->weight;
    const int dense = weight->layout == COPPICE_DENSE, unit = dense ? 1 : DEPTH;
    const deal own = deal_of(args, unit * LANES, DOT_PANEL_VECTORS(dense) / unit);
    const int64_t columns = weight->cols < weight->slab ? weight->cols : weight->slab, slabs = coppice_slabs(weight);
    float *groups = aligned(args->work.scratch);
    float *x = aligned((char *)groups + coppice_grouped(weight));
    float *sums = aligned(x + columns * COPPICE_PANEL_PIXELS + COPPICE_PANEL_SLACK);
    float scales[most_panel_vectors * LANES], inverse[most_panel_vectors * LANES];
    float room[DEPTH * most_panel_vectors * LANES + COPPICE_PANEL_SLACK];
    const narrows order = group_order((int)weight->height);
    outline drawn;
    for (int64_t number = own.first_panel; number < own.end_panel; number++) {
        const panel units = panel_of(&own, args->pixels, unit * LANES, number);
        const int64_t pixels = pixels_of(units, unit * LANES);
        panel part = {units.first, (int)((pixels + LANES - 1) / LANES), (int)(pixels % LANES), NULL};
        part.outline = outline_of(part, args->window, &drawn);
        const int vectors = units.vectors * unit, padded = (vectors + DEPTH - 1) / DEPTH * DEPTH;
        dot_pass p = {.args = args, .x = (char *)x, .scales = scales, .sums = sums};
        p.pitch = dense ? padded * register_bytes : padded / DEPTH * register_bytes;
        p.stride = (int64_t)vectors * LANES;
        if (DOT_SCALED)
            EACH_TYPE(type_of_rows(args), set_scales(type, args, part, room, scales, inverse))
        const int rows = tile_rows(weight->height, vectors);
        for (p.slab = 0; p.slab < slabs; p.slab++) {
            if (dense)
                EACH_TYPE(type_of_rows(args),
                          pack_narrow(type, 1, args, p.slab, part, inverse, room, (char *)x, p.pitch))
            else
                EACH_TYPE(type_of_rows(args),
                          pack_narrow(type, 0, args, p.slab, part, inverse, room, (char *)x, p.pitch))
            for (p.first_band = own.first_band; p.first_band < own.end_band; p.first_band = p.end_band) {
                p.end_band = group_bands(weight, order, p.slab, p.first_band, own.end_band, (char *)groups);
                p.groups = (const char *)groups;
                for (int64_t row = 0; row < weight->height; row += rows)
                    run_dot_tiles(rows, vectors, &p, row);
                if (p.slab + 1 == slabs)
                    finish(args, weight->scales, p.first_band, p.end_band, part, sums, p.stride);
            }
        }
    }
}

#endif
