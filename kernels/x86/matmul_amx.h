/* Dense weights by tiles of AMX: what x86/matmul_amx_bf16.c and x86/matmul_amx_int8.c share.
 *
 * x is packed in groups, as vector/narrow.h does it, and these are what a tile of x consists of. Of the weight two
 * tiles' rows, thirty-two, are turned from groups into rows in scratch and meet all pixels of the panel, two tiles by
 * two: four loads for four products of tiles. Before this file comes TILE_DOT, beside what narrow.h needs. */
#include "../vector/narrow.h"
#include "amx.h"

enum { tile_pair = 2 };

/* One slab of a panel, and up to two tiles' rows of the weight. */
typedef struct tile_pass {
    const coppice_matmul_args *args;
    int64_t slab, first_band, end_band;
    int64_t steps;                         /* tiles of groups */
    char *groups;                          /* room for the bands of a tile */
    char *weight;                          /* [tile_pair][steps] tiles */
    char heads[tile_pair * tile_side * 4]; /* what the sums of the rows begin with */
    const char *x;                         /* [groups][pitch] */
    int64_t pitch;                         /* bytes */
    const float *scales;
    float *sums; /* [rows][stride], of row 0 */
    int64_t stride;
} tile_pass;

/* Sixteen rows of sixteen groups become sixteen groups of sixteen rows. */
static inline void turn_tile(__m512i r[tile_side]) {
    enum { even = 0x88, odd = 0xdd }; /* quarters of two registers */
    __m512i t[tile_side];
    COPPICE_UNROLL
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    COPPICE_UNROLL
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    COPPICE_UNROLL
    for (int c = 0; c < 4; c++) {
        t[c] = _mm512_shuffle_i32x4(r[c], r[4 + c], even);
        t[4 + c] = _mm512_shuffle_i32x4(r[c], r[4 + c], odd);
        t[8 + c] = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], even);
        t[12 + c] = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], odd);
    }
    COPPICE_UNROLL
    for (int c = 0; c < 8; c++) {
        r[c] = _mm512_shuffle_i32x4(t[c], t[8 + c], even);
        r[8 + c] = _mm512_shuffle_i32x4(t[c], t[8 + c], odd);
    }
}

/* The rows of the bands first .. end - 1, at most sixteen, as tiles; groups past the last are zero, rows too. */
static void make_tiles(tile_pass *p, narrows order, int64_t first, int64_t end, char *heads, char *to) {
    const coppice_weight *weight = &p->args->weight;
    const size_t height = (size_t)weight->height, entries = (size_t)coppice_slab_width(weight, p->slab);
    const size_t head = height * DOT_HEAD, band = band_bytes(weight->height, entries), count = groups_of(entries);
    for (int64_t i = 0; i < end - first; i++) {
        char *groups = p->groups + (size_t)i * band;
        write_groups(weight, order, coppice_first_entry(weight, p->slab, first + i) * height, entries * height, groups);
        memcpy(heads + (size_t)i * head, groups, head);
    }
    for (size_t step = 0; step < (size_t)p->steps; step++, to += tile_bytes) {
        char held[tile_side][tile_row] = {{0}};
        for (size_t group = 0; group < tile_side && step * tile_side + group < count; group++)
            for (size_t i = 0; i < (size_t)(end - first); i++)
                memcpy(held[group] + i * height * DOT_BYTES,
                       p->groups + i * band + head + (step * tile_side + group) * height * DOT_BYTES,
                       height * DOT_BYTES);
        __m512i rows[tile_side];
        COPPICE_UNROLL
        for (int i = 0; i < tile_side; i++)
            rows[i] = _mm512_loadu_si512(held[i]);
        turn_tile(rows);
        COPPICE_UNROLL
        for (int i = 0; i < tile_side; i++)
            _mm512_storeu_si512(to + i * tile_row, rows[i]);
    }
}

/* sums[rows][vectors] tiles: one or two tiles' rows by one or two vectors of pixels, of a whole slab. */
ALWAYS_INLINE void multiply_tiles(const int rows, const int vectors, const tile_pass *p, const char *x, char *sums) {
    const char *one = p->weight, *two = one + p->steps * tile_bytes;
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    for (int64_t step = 0; step < p->steps; step++, one += tile_bytes, two += tile_bytes, x += tile_side * p->pitch) {
        TILE_LOAD(4, one, tile_row);
        TILE_LOAD(6, x, p->pitch);
        TILE_DOT(0, 4, 6);
        if (vectors > 1) {
            TILE_LOAD(7, x + tile_row, p->pitch);
            TILE_DOT(1, 4, 7);
        }
        if (rows > 1) {
            TILE_LOAD(5, two, tile_row);
            TILE_DOT(2, 5, 6);
        }
        if (rows > 1 && vectors > 1)
            TILE_DOT(3, 5, 7);
    }
    TILE_STORE(0, sums, tile_row);
    TILE_STORE(1, sums + tile_bytes, tile_row);
    TILE_STORE(2, sums + 2 * tile_bytes, tile_row);
    TILE_STORE(3, sums + 3 * tile_bytes, tile_row);
}

/* All pixels of the panel by the rows of the pass. */
static void run_tiles(const tile_pass *p, int vectors) {
    const int64_t height = p->args->weight.height, first = p->first_band * height, rows = p->end_band * height - first;
    char found[tile_pair * tile_pair * tile_bytes];
    for (int at = 0; at < vectors; at += tile_pair) {
        const int wide = at + 1 < vectors;
        const char *x = p->x + at * tile_row;
        if (rows > tile_side && wide)
            multiply_tiles(2, 2, p, x, found);
        else if (rows > tile_side)
            multiply_tiles(2, 1, p, x, found);
        else if (wide)
            multiply_tiles(1, 2, p, x, found);
        else
            multiply_tiles(1, 1, p, x, found);
        for (int64_t row = 0; row < rows; row++)
            for (int v = 0; v <= wide; v++) {
                const int64_t tile = row / tile_side * tile_pair + v;
                dots sum;
                memcpy(&sum, found + tile * tile_bytes + row % tile_side * tile_row, sizeof sum);
                add_sum(dot_add(sum, dot_beginning(p->heads, row)), p->scales + (at + v) * LANES, p->slab == 0,
                        p->sums + (first + row) * p->stride + (at + v) * LANES);
            }
    }
}

/* For dense weights, with arguments that allow it. */
static void matmul_tiles(const coppice_matmul_args *args) {
    const coppice_weight *weight = &args->weight;
    const deal own = deal_of(args, LANES, most_panel_vectors);
    const int64_t columns = weight->cols < weight->slab ? weight->cols : weight->slab, slabs = coppice_slabs(weight);
    const int64_t bands = tile_side / weight->height, most_steps = coppice_tile_steps(columns);
    const narrows order = group_order((int)weight->height);
    float scales[most_panel_vectors * LANES], inverse[most_panel_vectors * LANES];
    float room[DEPTH * most_panel_vectors * LANES + COPPICE_PANEL_SLACK];
    tile_pass p = {.args = args, .scales = scales};
    outline drawn;
    p.weight = (char *)aligned(args->work.scratch);
    p.groups = p.weight + tile_pair * most_steps * tile_bytes;
    char *x = (char *)aligned(p.groups + (most_steps + 1) * tile_bytes);
    p.sums = aligned(x + most_steps * tile_side * most_panel_vectors * register_bytes);
    p.x = x;
    tiles_begin();
    for (int64_t number = own.first_panel; number < own.end_panel; number++) {
        panel part = panel_of(&own, args->pixels, LANES, number);
        part.outline = outline_of(part, args->window, &drawn);
        const int padded = (part.vectors + DEPTH - 1) / DEPTH * DEPTH;
        p.pitch = padded * register_bytes, p.stride = (int64_t)part.vectors * LANES;
        if (DOT_SCALED)
            EACH_TYPE(type_of_rows(args), set_scales(type, args, part, room, scales, inverse))
        for (p.slab = 0; p.slab < slabs; p.slab++) {
            const size_t count = groups_of((size_t)coppice_slab_width(weight, p.slab));
            p.steps = (int64_t)(count + tile_side - 1) / tile_side;
            EACH_TYPE(type_of_rows(args), pack_narrow(type, 1, args, p.slab, part, inverse, room, x, p.pitch))
            memset(x + count * (size_t)p.pitch, 0, ((size_t)p.steps * tile_side - count) * (size_t)p.pitch);
            for (p.first_band = own.first_band; p.first_band < own.end_band; p.first_band = p.end_band) {
                p.end_band = p.first_band;
                for (int tile = 0; tile < tile_pair && p.end_band < own.end_band; tile++) {
                    const int64_t band = p.end_band;
                    p.end_band = band + bands < own.end_band ? band + bands : own.end_band;
                    make_tiles(&p, order, band, p.end_band, p.heads + tile * tile_side * DOT_HEAD,
                               p.weight + tile * p.steps * tile_bytes);
                }
                run_tiles(&p, part.vectors);
                if (p.slab + 1 == slabs)
                    finish(args, weight->scales, p.first_band, p.end_band, part, p.sums, p.stride);
            }
        }
    }
    tiles_end();
}
