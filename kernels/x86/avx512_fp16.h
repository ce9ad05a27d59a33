/* Vectors of thirty-two fp16 with arithmetic of their own (AVX512-FP16), beside the sixteen fp32 of avx512.h.
 *
 * Their two instructions are written out, so that a compiler need not know them. With COPPICE_EMULATE they are
 * computed by fp32 instead, rounded after every addition: for the check program, on machines that lack them. */
#include "avx512.h"

#define HALF_LANES 32

typedef __m512i halves;

static inline halves half_zero(void) {
    return _mm512_setzero_si512();
}

static inline halves half_broadcast(const uint16_t *from) {
    return _mm512_set1_epi16((short)*from);
}

static inline halves half_load(const uint16_t *from) {
    return _mm512_loadu_si512(from);
}

/* The first half of the lanes as fp32, and the second. */
static inline vector half_low(halves a) {
    return _mm512_cvtph_ps(_mm512_castsi512_si256(a));
}

static inline vector half_high(halves a) {
    return _mm512_cvtph_ps(_mm512_extracti64x4_epi64(a, 1));
}

#if COPPICE_EMULATE

static inline halves both_halves(vector low, vector high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(to_f16(low)), to_f16(high), 1);
}

static inline halves half_add(halves a, halves b) {
    return both_halves(add(half_low(a), half_low(b)), add(half_high(a), half_high(b)));
}

static inline halves half_multiply_add(halves a, halves b, halves c) {
    return both_halves(multiply_add(half_low(a), half_low(b), half_low(c)),
                       multiply_add(half_high(a), half_high(b), half_high(c)));
}

#else

static inline halves half_add(halves a, halves b) {
    __asm__("vaddph %2, %1, %0" : "=v"(a) : "v"(a), "v"(b));
    return a;
}

static inline halves half_multiply_add(halves a, halves b, halves c) {
    __asm__("vfmadd231ph %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
}

#endif
