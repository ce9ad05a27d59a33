/* spmm_f32 for AVX2 and FMA. */
#include <immintrin.h>

#define LANES         8
#define PANEL_VECTORS 10
#define PANEL_CASES                                                                                                    \
    CASE(1, 4) CASE(2, 4) CASE(3, 2) CASE(4, 2) CASE(5, 2) CASE(6, 1) CASE(7, 1) CASE(8, 1) CASE(9, 1) CASE(10, 1)

typedef __m256 vector;

static inline vector zero(void) {
    return _mm256_setzero_ps();
}

static inline vector broadcast(float value) {
    return _mm256_set1_ps(value);
}

static inline vector load(const float *from) {
    return _mm256_loadu_ps(from);
}

static inline void store(float *to, vector value) {
    _mm256_storeu_ps(to, value);
}

/* The first `count` lanes. */
static inline __m256i lanes(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vector load_tail(const float *from, int count) {
    return _mm256_maskload_ps(from, lanes(count));
}

static inline void store_tail(float *to, int count, vector value) {
    _mm256_maskstore_ps(to, lanes(count), value);
}

static inline vector add(vector a, vector b) {
    return _mm256_add_ps(a, b);
}

static inline vector multiply_add(vector a, vector b, vector c) {
    return _mm256_fmadd_ps(a, b, c);
}

/* Both return b where a or b is NaN. */
static inline vector maximum(vector a, vector b) {
    return _mm256_max_ps(a, b);
}

static inline vector minimum(vector a, vector b) {
    return _mm256_min_ps(a, b);
}

#include "spmm_f32.h"

void coppice_spmm_f32_avx2(const coppice_spmm_f32_args *args) {
    spmm_f32_vectors(args);
}
