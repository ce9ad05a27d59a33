/* spmm_f32 for AVX-512F. */
#include <immintrin.h>

#define LANES         16
#define PANEL_VECTORS 5
#define PANEL_CASES   CASE(1, 4) CASE(2, 2) CASE(3, 2) CASE(4, 1) CASE(5, 1)

typedef __m512 vector;

static inline vector zero(void) {
    return _mm512_setzero_ps();
}

static inline vector broadcast(float value) {
    return _mm512_set1_ps(value);
}

static inline vector load(const float *from) {
    return _mm512_loadu_ps(from);
}

static inline void store(float *to, vector value) {
    _mm512_storeu_ps(to, value);
}

static inline vector load_tail(const float *from, int count) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
}

static inline void store_tail(float *to, int count, vector value) {
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), value);
}

static inline vector add(vector a, vector b) {
    return _mm512_add_ps(a, b);
}

static inline vector multiply_add(vector a, vector b, vector c) {
    return _mm512_fmadd_ps(a, b, c);
}

/* Both return b where a or b is NaN. */
static inline vector maximum(vector a, vector b) {
    return _mm512_max_ps(a, b);
}

static inline vector minimum(vector a, vector b) {
    return _mm512_min_ps(a, b);
}

#include "spmm_f32.h"

void coppice_spmm_f32_avx512(const coppice_spmm_f32_args *args) {
    spmm_f32_vectors(args);
}
