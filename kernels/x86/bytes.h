/* x of few pixels as bytes, for products in integers: what arithmetic COPPICE_I8 allows. AVX-512. */
#ifndef COPPICE_X86_BYTES_H
#define COPPICE_X86_BYTES_H

#include "few.h"

#include <math.h>

/* Steps that 32 bits can add up, each four products of at most 255 * 128. */
enum { bytes_steps = 16384 };

/* [pixels][stride] bytes q + 128, q in -127 .. 127: x is q * factor * unit, the columns behind the last one zero. The
 * unsigned operand of a dot product (VPDPBUSD) is x; what the 128 adds is taken off again. */
typedef struct byte_x {
    const uint8_t *x;
    int64_t stride;
    float factor[most_few_pixels], unit[most_few_pixels];
} byte_x;

/* The magnitude of the greatest, NaN being greater than infinity. */
static inline float greatest_magnitude(const float *x, int64_t count) {
    __m512i most = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; i += LANES)
        most = _mm512_max_epu32(most, _mm512_castps_si512(absolute(load(x + i))));
    const uint32_t bits = _mm512_reduce_max_epu32(most);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* One pixel in place: a byte is written behind the float that it is made of. */
static inline void quantise(float *x, int64_t width, float *factor, float *unit) {
    const float given = greatest_magnitude(x, width), least = 0x1p-64f;
    const float raise = given < least ? 0x1p64f : 1.0f, most = given * raise; /* 127 / given is finite then */
    const int finite = given - given == 0.0f;
    const float inverse = finite && most > 0.0f ? 127.0f / most : 0.0f;
    *factor = finite ? most / 127.0f : NAN;
    *unit = 1.0f / raise;
    for (int64_t i = 0; i < width; i += LANES) {
        const vector scaled = multiply(multiply(load(x + i), broadcast(raise)), broadcast(inverse));
        const __m512i q = finite ? _mm512_cvtps_epi32(scaled) : _mm512_setzero_si512();
        const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(q, _mm512_set1_epi32(128)));
        _mm_storeu_si128((__m128i *)(void *)((uint8_t *)x + i), bytes);
    }
}

static inline byte_x bytes_of(const coppice_matmul_args *args, float *room) {
    const int64_t width = coppice_few_width(&args->weight);
    few_x(args, room);
    byte_x made = {.x = (const uint8_t *)room, .stride = width * (int64_t)sizeof(float)};
    for (int64_t pixel = 0; pixel < args->pixels; pixel++)
        quantise(room + pixel * width, width, &made.factor[pixel], &made.unit[pixel]);
    return made;
}

/* What `sums` of products with q are with x. */
ALWAYS_INLINE vector of_bytes(const byte_x *x, int pixel, vector sums) {
    return multiply(multiply(sums, broadcast(x->factor[pixel])), broadcast(x->unit[pixel]));
}

#endif
