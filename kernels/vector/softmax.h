/* softmax for vector registers: one algorithm, compiled once per instruction set. A row passes three times: for its
 * maximum, for the exponentials and their sum, which go to scratch, and for y. */
#ifndef COPPICE_VECTOR_SOFTMAX_H
#define COPPICE_VECTOR_SOFTMAX_H

#include "activation.h"
#include "elements.h"

#include <math.h>

ALWAYS_INLINE void softmax_row(const int type, const coppice_softmax_args *args, int64_t row, float *room) {
    const int64_t from = row * args->x_stride, to = row * args->y_stride, pixels = args->pixels;
    const vector scale_by = broadcast(args->scale), lowest = broadcast(-INFINITY);
    vector most = lowest, sum = zero();
#define COUNT(i) ((int)(pixels - (i) < LANES ? pixels - (i) : LANES))
    for (int64_t i = 0; i < pixels; i += LANES) {
        const vector x = multiply(scale_by, load_as(type, args->x, from + i, COUNT(i)));
        most = maximum(COUNT(i) < LANES ? first_lanes(COUNT(i), x, lowest) : x, most);
    }
    const vector shift = broadcast(-maximum_lane(most));
    for (int64_t i = 0; i < pixels; i += LANES) {
        const vector x = load_as(type, args->x, from + i, COUNT(i));
        vector value = exponential(multiply_add(scale_by, x, shift));
        if (COUNT(i) < LANES)
            value = first_lanes(COUNT(i), value, zero());
        store(room + i, value);
        sum = add(sum, value);
    }
    const vector factor = broadcast(1.0f / sum_lanes(sum));
    for (int64_t i = 0; i < pixels; i += LANES)
        store_as(type, args->y, to + i, COUNT(i), multiply(load(room + i), factor));
#undef COUNT
}

static void softmax_vectors(const coppice_softmax_args *args) {
    float *room = aligned(args->work.scratch);
    const int64_t share = args->work.share, shares = args->work.shares, end = args->rows * (share + 1) / shares;
    for (int64_t row = args->rows * share / shares; row < end; row++)
        EACH_TYPE(args->type, softmax_row(type, args, row, room))
}

#endif
