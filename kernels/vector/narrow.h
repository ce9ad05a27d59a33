/* Products of narrow elements, by twos (pairs of bf16) or fours (bytes): x, the weight and sums, however they are
 * added.
 *
 * One instruction adds DEPTH products to each sum. A group is DEPTH entries of a band, or DEPTH columns of x side by
 * side for each pixel.
 *
 * Before this file come the vectors of the instruction set and what x86/avx512_bf16.h and the like say of their
 * elements: DEPTH, `narrow`, `dots` and the functions over them; DOT_SCALED where each pixel of x has a scale; DOT_HEAD
 * bytes a row that its sums begin with; group_order and write_groups, which bring values into groups. */
#ifndef COPPICE_VECTOR_NARROW_H
#define COPPICE_VECTOR_NARROW_H

#include "panel.h"

#include <float.h>

/* Of a panel. */
enum { register_bytes = 64, most_panel_vectors = COPPICE_PANEL_PIXELS / LANES };

static inline size_t groups_of(size_t entries) {
    return (entries + DEPTH - 1) / DEPTH;
}

/* Bytes of a band of so many entries in scratch. */
static inline size_t band_bytes(int64_t height, size_t entries) {
    return (size_t)height * (DOT_HEAD + groups_of(entries) * DEPTH * sizeof(narrow));
}

/* --- x --------------------------------------------------------------------------------------------------------------
 */

/* Rows of x, as they are or, of windows, as a copy in fp32. */
typedef struct source {
    const void *x;
    int64_t stride;
} source;

/* `columns` rows, at most DEPTH. */
ALWAYS_INLINE source rows_of(const int type, const coppice_matmul_args *args, int64_t first, int64_t columns,
                             panel part, float *room) {
    if (args->window)
        return (source){room, pack_windows(args, first, columns, part, room).stride};
    const int64_t place = first * args->x_stride + part.first;
    return (source){(const char *)args->x + place * (type == COPPICE_F32 ? 4 : 2), args->x_stride};
}

/* What each pixel of a panel is divided by before it is rounded, and 1 over it: a 127th of its greatest magnitude, or
 * NaN. */
ALWAYS_INLINE void set_scales(const int type, const coppice_matmul_args *args, panel part, float *room, float *scales,
                              float *inverse) {
    vector most[most_panel_vectors];
    for (int v = 0; v < part.vectors; v++)
        most[v] = zero();
    for (int64_t first = 0; first < args->weight.cols; first += DEPTH) {
        const int64_t rest = args->weight.cols - first, columns = rest < DEPTH ? rest : DEPTH;
        const source rows = rows_of(type, args, first, columns, part, room);
        for (int64_t column = 0; column < columns; column++)
            for (int v = 0; v < part.vectors; v++) {
                const vector x = load_as(type, rows.x, column * rows.stride + v * LANES, lanes_of(part, v));
                most[v] = greatest(most[v], absolute(x));
            }
    }
    for (int v = 0; v < part.vectors; v++) {
        const vector unit = multiply_add(most[v], zero(), multiply(most[v], broadcast(1.0f / 127))); /* infinity: NaN */
        const vector normal = maximum(broadcast(FLT_MIN), unit);
        store(scales + v * LANES, normal);
        store(inverse + v * LANES, divide(broadcast(1.0f), normal));
    }
}

/* DEPTH vectors of a row of x, from vector `at` of the panel on; `whole`: all their lanes count. */
ALWAYS_INLINE narrows narrow_row(const int type, const int whole, source rows, int64_t row, panel part, int at,
                                 const float *inverse) {
    vector wide[DEPTH];
    COPPICE_UNROLL
    for (int v = 0; v < DEPTH; v++) {
        const int inside = whole || at + v < part.vectors;
        const int64_t place = row * rows.stride + (at + v) * LANES;
        wide[v] = inside ? load_as(type, rows.x, place, whole ? LANES : lanes_of(part, at + v)) : zero();
        if (inside && DOT_SCALED)
            wide[v] = multiply(wide[v], load(inverse + (at + v) * LANES));
    }
    return narrowed(wide);
}

/* `columns` rows of x narrow, at most DEPTH, in groups or one by one. */
ALWAYS_INLINE void pack_group(const int type, const int whole, const int dense, source rows, int64_t columns,
                              panel part, int at, const float *inverse, char *to, int64_t pitch) {
    narrows held[DEPTH];
    COPPICE_UNROLL
    for (int c = 0; c < DEPTH; c++)
        held[c] = c < columns ? narrow_row(type, whole, rows, c, part, at, inverse) : narrow_zero();
    if (dense)
        interleave(held);
    COPPICE_UNROLL
    for (int c = 0; c < DEPTH; c++)
        if (dense)
            narrow_store(to + (at + c) * register_bytes, held[c]);
        else if (c < columns)
            narrow_store(to + c * pitch + at / DEPTH * register_bytes, held[c]);
}

/* A slab of a panel of x, narrow: for dense weights in groups, for others column by column. */
ALWAYS_INLINE void pack_narrow(const int type, const int dense, const coppice_matmul_args *args, int64_t slab,
                               panel part, const float *inverse, float *room, char *to, int64_t pitch) {
    const int64_t first = slab * args->weight.slab, width = coppice_slab_width(&args->weight, slab);
    const int whole = (part.vectors - (part.tail > 0)) / DEPTH * DEPTH;
    for (int64_t column = 0; column < width; column += DEPTH, to += dense ? pitch : DEPTH * pitch) {
        const int64_t columns = width - column < DEPTH ? width - column : DEPTH;
        const source rows = rows_of(type, args, first + column, columns, part, room);
        int at = 0;
        for (; at < whole && columns == DEPTH; at += DEPTH)
            pack_group(type, 1, dense, rows, DEPTH, part, at, inverse, to, pitch);
        for (; at < part.vectors; at += DEPTH)
            pack_group(type, 0, dense, rows, columns, part, at, inverse, to, pitch);
    }
}

/* Of the rows that `rows_of` gives. */
static inline int32_t type_of_rows(const coppice_matmul_args *args) {
    return args->window ? COPPICE_F32 : args->type;
}

/* Adds the sum of a slab, in LANES pixels of a row, to what the slabs before it came to. */
ALWAYS_INLINE void add_sum(dots sum, const float *scales, int begin, float *to) {
    const vector total = dot_value(sum), rest = begin ? zero() : load(to);
    store(to, DOT_SCALED ? multiply_add(total, load(scales), rest) : add(total, rest));
}

#endif
