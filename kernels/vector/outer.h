/* Gradients of weights from few pixels, one vector of them or less: the lanes are values that follow each other, which
 * take the products of one pixel after the other. The others would spend their time adding up lanes. */
#ifndef COPPICE_VECTOR_OUTER_H
#define COPPICE_VECTOR_OUTER_H

#include "pack.h"

enum { outer_rows = 4 };

/* to[pixel][LANES]: dy of all rows of a band, repeated where it has fewer rows than there are lanes; of taller bands
 * LANES rows. dy is [rows][stride]. */
static inline void turn(const float *dy, int64_t stride, int64_t height, int pixels, float *to) {
    for (int pixel = 0; pixel < pixels; pixel++)
        for (int lane = 0; lane < LANES; lane++)
            to[pixel * LANES + lane] = dy[lane % height * stride + pixel];
}

/* Adds to the values of `held` entries the products of x at their columns, or one after the other, and of dy as `turn`
 * has it. */
ALWAYS_INLINE void outer_entries(const int height, const int held, const float *dy, block from, const uint16_t *columns,
                                 int64_t entry, int pixels, float *values) {
    const int parts = height < LANES ? LANES / height : 1, count = parts > 1 ? held * height : LANES;
    const float *x[LANES];
    for (int part = 0; part < held; part++)
        x[part] = from.x + (columns ? columns[entry + part] : entry + part) * from.stride;
    vector sum = load_part(values + entry * height, count);
    for (int pixel = 0; pixel < pixels; pixel++) {
        vector spread = zero();
        for (int part = 0; part < held; part++)
            spread = broadcast_into(spread, part, parts, x[part] + pixel);
        sum = multiply_add(load(dy + pixel * LANES), spread, sum);
    }
    store_part(values + entry * height, count, sum);
}

/* The same of all entries of a band: values[entries][height], all rows of them or LANES. */
ALWAYS_INLINE void outer_band(const int height, const float *dy, block from, const uint16_t *columns, int64_t entries,
                              int pixels, float *values) {
    const int parts = height < LANES ? LANES / height : 1;
    int64_t entry = 0;
    for (; entries - entry >= parts; entry += parts)
        outer_entries(height, parts, dy, from, columns, entry, pixels, values);
    if (entry < entries)
        outer_entries(height, (int)(entries - entry), dy, from, columns, entry, pixels, values);
}

/* to[pixel][pitch]: the columns of x side by side; whole vectors may be read. */
static inline void turn_block(block from, int64_t columns, int pixels, int64_t pitch, float *to) {
    for (int64_t column = 0; column < columns; column++)
        for (int pixel = 0; pixel < pixels; pixel++)
            to[pixel * pitch + column] = from.x[column * from.stride + pixel];
}

/* Adds to `count` rows of values, outer_rows or fewer, `step` apart, the products of dy[rows][stride] and of x as
 * turn_block has it. */
ALWAYS_INLINE void outer_rows_of(const int count, const float *dy, int64_t stride, const float *x, int64_t pitch,
                                 int64_t columns, int pixels, float *values, int64_t step) {
    for (int64_t column = 0; column < columns; column += LANES) {
        const int held = columns - column < LANES ? (int)(columns - column) : LANES;
        vector sum[outer_rows];
        for (int r = 0; r < count; r++)
            sum[r] = load_part(values + r * step + column, held);
        for (int pixel = 0; pixel < pixels; pixel++) {
            const vector beside = load(x + pixel * pitch + column);
            for (int r = 0; r < count; r++)
                sum[r] = multiply_add(broadcast(dy[r * stride + pixel]), beside, sum[r]);
        }
        for (int r = 0; r < count; r++)
            store_part(values + r * step + column, held, sum[r]);
    }
}

#endif
