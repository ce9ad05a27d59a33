/* Elements of all types as vectors of fp32, for the algorithms of this folder. */
#ifndef COPPICE_VECTOR_ELEMENTS_H
#define COPPICE_VECTOR_ELEMENTS_H

#include "../kernels.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* `call` in a copy for each type of activations, or of values, which is the constant `type` in it. */
#define EACH_TYPE(which, call)                                                                                         \
    switch (which) {                                                                                                   \
        TYPE_CASE(COPPICE_F16, call)                                                                                   \
        TYPE_CASE(COPPICE_BF16, call)                                                                                  \
    default: {                                                                                                         \
        const int type = COPPICE_F32;                                                                                  \
        call;                                                                                                          \
    }                                                                                                                  \
    }

#define EACH_VALUE_TYPE(which, call)                                                                                   \
    switch (which) {                                                                                                   \
        TYPE_CASE(COPPICE_I8, call)                                                                                    \
    default:                                                                                                           \
        EACH_TYPE(which, call)                                                                                         \
    }

#define TYPE_CASE(one, call)                                                                                           \
    case one: {                                                                                                        \
        const int type = one;                                                                                          \
        call;                                                                                                          \
    } break;

/* `count` lanes, the others zero. */
ALWAYS_INLINE vector load_part(const float *from, int count) {
    return count < LANES ? load_tail(from, count) : load(from);
}

ALWAYS_INLINE void store_part(float *to, int count, vector value) {
    if (count < LANES)
        store_tail(to, count, value);
    else
        store(to, value);
}

/* `count` elements of a type from `index` on, the other lanes zero. */
ALWAYS_INLINE vector load_as(int type, const void *data, int64_t index, int count) {
    switch (type) {
    case COPPICE_F16:
        return from_f16(load_halves((const uint16_t *)data + index, count));
    case COPPICE_BF16:
        return from_bf16(load_halves((const uint16_t *)data + index, count));
    default:
        return load_part((const float *)data + index, count);
    }
}

/* The same of values of a weight, which may be bytes. */
ALWAYS_INLINE vector values_at(const int type, const void *values, size_t index, int count) {
    if (type == COPPICE_I8)
        return load_i8((const int8_t *)values + index, count);
    return load_as(type, values, (int64_t)index, count);
}

ALWAYS_INLINE void store_as(int type, void *data, int64_t index, int count, vector value) {
    switch (type) {
    case COPPICE_F16:
        store_halves((uint16_t *)data + index, count, to_f16(value));
        break;
    case COPPICE_BF16:
        store_halves((uint16_t *)data + index, count, to_bf16(value));
        break;
    default:
        store_part((float *)data + index, count, value);
    }
}

/* LANES elements of a type from `index` on, of which those before `first` and from `end` on are zero and not read. */
ALWAYS_INLINE vector load_between(const int type, const void *data, int64_t index, int64_t first, int64_t end) {
    if (first >= LANES || end <= 0)
        return zero();
    const int begin = first > 0 ? (int)first : 0, stop = end < LANES ? (int)end : LANES;
    if (stop <= begin)
        return zero();
    if (stop - begin == LANES)
        return load_as(type, data, index, LANES);
    switch (type) {
    case COPPICE_F16:
        return from_f16(load_half_lanes((const uint16_t *)data + index, begin, stop));
    case COPPICE_BF16:
        return from_bf16(load_half_lanes((const uint16_t *)data + index, begin, stop));
    default:
        return load_lanes((const float *)data + index, begin, stop);
    }
}

/* The first address from `memory` on where scratch may begin. */
static inline float *aligned(void *memory) {
    const uintptr_t at = (uintptr_t)memory + COPPICE_SCRATCH_ALIGNMENT - 1;
    return (float *)(at - at % COPPICE_SCRATCH_ALIGNMENT);
}

/* to[count] = value; whole vectors are written. */
ALWAYS_INLINE void fill(float *to, int64_t count, float value) {
    for (int64_t i = 0; i < count; i += LANES)
        store(to + i, broadcast(value));
}

/* Every other one of up to 2 * LANES elements from `index` on, the last of which is element `last`. */
ALWAYS_INLINE vector load_alternate(const int type, const void *x, int64_t index, int64_t last) {
    const int64_t first = last - index + 1, second = first - LANES;
    const vector low = load_as(type, x, index, (int)(first < LANES ? first : LANES));
    if (second <= 0)
        return even_lanes(low, zero());
    return even_lanes(low, load_as(type, x, index + LANES, (int)(second < LANES ? second : LANES)));
}

#endif
