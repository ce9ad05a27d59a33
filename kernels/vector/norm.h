/* norm for vector registers: one algorithm, compiled once per instruction set.
 *
 * Tokens side by side take a lane each and pass over the channels three times: for the mean, for the squares, for y. A
 * token that is a row does the same along its row. */
#ifndef COPPICE_VECTOR_NORM_H
#define COPPICE_VECTOR_NORM_H

#include "elements.h"

enum { chains = 4 };

/* `vectors` vectors of tokens, a constant, from token `first` on; of the last one `count` lanes. */
ALWAYS_INLINE void norm_columns(const int type, const int vectors, const coppice_norm_args *args, int64_t first,
                                int count) {
    const vector channels = broadcast((float)args->channels);
    vector mean[chains], square[chains];
#define EACH(v) for (int v = 0; v < vectors; v++)
#define X(c, v) load_as(type, args->x, (c) * args->x_stride + first + (v) * LANES, (v) + 1 < vectors ? LANES : count)
    EACH(v) mean[v] = square[v] = zero();
    if (args->kind == COPPICE_LAYER_NORM) {
        for (int64_t c = 0; c < args->channels; c++)
            EACH(v) mean[v] = add(mean[v], X(c, v));
        EACH(v) mean[v] = divide(mean[v], channels);
    }
    for (int64_t c = 0; c < args->channels; c++)
        EACH(v) {
            const vector from_mean = subtract(X(c, v), mean[v]);
            square[v] = multiply_add(from_mean, from_mean, square[v]);
        }
    EACH(v) {
        const vector variance = add(divide(square[v], channels), broadcast(args->epsilon));
        square[v] = divide(broadcast(1.0f), square_root(variance));
    }
    for (int64_t c = 0; c < args->channels; c++) {
        const vector weight = broadcast(args->weight ? args->weight[c] : 1.0f);
        const vector bias = broadcast(args->bias ? args->bias[c] : 0.0f);
        EACH(v) {
            const vector value = multiply(subtract(X(c, v), mean[v]), square[v]);
            store_as(type, args->y, c * args->y_stride + first + v * LANES, v + 1 < vectors ? LANES : count,
                     multiply_add(value, weight, bias));
        }
    }
#undef X
#undef EACH
}

/* The sum over a row of x of x - mean, or of its square. */
ALWAYS_INLINE float sum_row(const int type, const int squared, const coppice_norm_args *args, int64_t index,
                            float mean) {
    const vector middle = broadcast(mean);
    vector sum[chains];
    for (int chain = 0; chain < chains; chain++)
        sum[chain] = zero();
    for (int64_t c = 0; c < args->channels; c += chains * LANES)
        for (int chain = 0; chain < chains; chain++) {
            const int64_t place = c + chain * LANES, left = args->channels - place;
            if (left <= 0)
                break;
            const int count = (int)(left < LANES ? left : LANES);
            vector value = subtract(load_as(type, args->x, index + place, count), middle);
            if (count < LANES)
                value = first_lanes(count, value, zero());
            sum[chain] = squared ? multiply_add(value, value, sum[chain]) : add(sum[chain], value);
        }
    return sum_lanes(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
}

ALWAYS_INLINE void norm_row(const int type, const coppice_norm_args *args, int64_t token) {
    const int64_t from = token * args->x_stride, to = token * args->y_stride;
    const float channels = (float)args->channels;
    const float mean = args->kind == COPPICE_LAYER_NORM ? sum_row(type, 0, args, from, 0.0f) / channels : 0.0f;
    const vector variance = broadcast(sum_row(type, 1, args, from, mean) / channels + args->epsilon);
    const vector factor = divide(broadcast(1.0f), square_root(variance)), middle = broadcast(mean);
    for (int64_t c = 0; c < args->channels; c += LANES) {
        const int count = (int)(args->channels - c < LANES ? args->channels - c : LANES);
        vector value = multiply(subtract(load_as(type, args->x, from + c, count), middle), factor);
        if (args->weight)
            value = multiply(value, load_as(COPPICE_F32, args->weight, c, count));
        if (args->bias)
            value = add(value, load_as(COPPICE_F32, args->bias, c, count));
        store_as(type, args->y, to + c, count, value);
    }
}

ALWAYS_INLINE void norm_tokens(const int type, const coppice_norm_args *args, int64_t first, int64_t end) {
    for (; args->token_rows && first < end; first++)
        norm_row(type, args, first);
    for (; end - first >= chains * LANES; first += chains * LANES)
        norm_columns(type, chains, args, first, LANES);
    for (; first < end; first += LANES)
        norm_columns(type, 1, args, first, (int)(end - first < LANES ? end - first : LANES));
}

static void norm_vectors(const coppice_norm_args *args) {
    const int64_t share = args->work.share, shares = args->work.shares, width = args->token_rows ? 1 : LANES;
    const int64_t parts = (args->tokens + width - 1) / width;
    const int64_t first = parts * share / shares * width, next = parts * (share + 1) / shares * width;
    const int64_t end = next < args->tokens ? next : args->tokens;
    EACH_TYPE(args->type, norm_tokens(type, args, first, end))
}

#endif
