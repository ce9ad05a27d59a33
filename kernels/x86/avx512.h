/* Vectors of sixteen fp32 in AVX-512 F, BW, DQ and VL: the operations that the algorithms of vector/ are written in. */
#include "../kernels.h"

#include <immintrin.h>

#define LANES 16

typedef __m512 vector;

static inline vector zero(void) {
    return _mm512_setzero_ps();
}

static inline vector broadcast(float value) {
    return _mm512_set1_ps(value);
}

/* first, first + step, ...: a constant where they are. */
static inline __m512i series(int first, int step) {
#define PLACE(number) first + (number) * step
    return _mm512_setr_epi32(PLACE(0), PLACE(1), PLACE(2), PLACE(3), PLACE(4), PLACE(5), PLACE(6), PLACE(7), PLACE(8),
                             PLACE(9), PLACE(10), PLACE(11), PLACE(12), PLACE(13), PLACE(14), PLACE(15));
#undef PLACE
}

static inline vector load(const float *from) {
    return _mm512_loadu_ps(from);
}

static inline void store(float *to, vector value) {
    _mm512_storeu_ps(to, value);
}

/* The same value, read from memory once: compilers would rather give each instruction that uses it a load of its own.
 */
static inline vector in_register(vector value) {
    __asm__("" : "+v"(value));
    return value;
}

/* The first `count` lanes. */
static inline __mmask16 lanes(int count) {
    return (__mmask16)((1u << count) - 1);
}

static inline vector load_tail(const float *from, int count) {
    return _mm512_maskz_loadu_ps(lanes(count), from);
}

static inline void store_tail(float *to, int count, vector value) {
    _mm512_mask_storeu_ps(to, lanes(count), value);
}

/* Lanes first .. end - 1, the others zero and not read. */
static inline __mmask16 lanes_between(int first, int end) {
    return (__mmask16)(lanes(end) & ~lanes(first));
}

static inline vector load_lanes(const float *from, int first, int end) {
    return _mm512_maskz_loadu_ps(lanes_between(first, end), from);
}

static inline __m256i load_half_lanes(const uint16_t *from, int first, int end) {
    return _mm256_maskz_loadu_epi16(lanes_between(first, end), from);
}

static inline __m256i load_halves(const uint16_t *from, int count) {
    return count == LANES ? _mm256_loadu_si256((const __m256i *)from) : _mm256_maskz_loadu_epi16(lanes(count), from);
}

static inline void store_halves(uint16_t *to, int count, __m256i halves) {
    if (count == LANES)
        _mm256_storeu_si256((__m256i *)to, halves);
    else
        _mm256_mask_storeu_epi16(to, lanes(count), halves);
}

static inline vector from_f16(__m256i halves) {
    return _mm512_cvtph_ps(halves);
}

static inline __m256i to_f16(vector value) {
    return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* Each is moved above a half from the upper, empty ones. */
static inline vector from_bf16(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(series(16, 0x10000), _mm512_zextsi256_si512(halves)));
}

/* Of each lane. */
static inline __m256i high_halves(__m512i words) {
    const __m512i places = series(0x30001, 0x40004);
    return _mm512_castsi512_si256(_mm512_permutexvar_epi16(places, words));
}

#ifdef __AVX512BF16__ /* below 2^-126 in magnitude it gives zero */
static inline __m256i to_bf16(vector value) {
    return (__m256i)_mm512_cvtneps_pbh(value);
}
#else
static inline __m256i to_bf16(vector value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i half = _mm512_mask_blend_epi32(odd, _mm512_set1_epi32(0x7fff), _mm512_set1_epi32(0x8000));
    const __m512i rounded = _mm512_add_epi32(bits, half);
    return high_halves(_mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000)));
}
#endif

static inline vector load_i8(const int8_t *from, int count) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes(count), from)));
}

/* v with part `part` of its `parts` equal parts filled with *from. */
static inline vector broadcast_into(vector v, int part, int parts, const float *from) {
    const int width = LANES / parts;
    return _mm512_mask_broadcastss_ps(v, (__mmask16)(((1u << width) - 1) << (part * width)), _mm_load_ss(from));
}

static inline vector add(vector a, vector b) {
    return _mm512_add_ps(a, b);
}

static inline vector subtract(vector a, vector b) {
    return _mm512_sub_ps(a, b);
}

static inline vector multiply(vector a, vector b) {
    return _mm512_mul_ps(a, b);
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

static inline vector square_root(vector a) {
    return _mm512_sqrt_ps(a);
}

/* NaN where a or b is. */
static inline vector greatest(vector a, vector b) {
    return _mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
}

static inline float sum_lanes(vector a) {
    return _mm512_reduce_add_ps(a);
}

/* In each 128 bits, the sums of four vectors over those bits. */
static inline vector sums_of_parts(const vector *a) {
    const __m512 first = _mm512_add_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
    const __m512 last = _mm512_add_ps(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
    const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(first), _mm512_castps_pd(last));
    const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(first), _mm512_castps_pd(last));
    return _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
}

/* The 128 bits of a two by two added up, then those of b. */
static inline vector add_parts(vector a, vector b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

/* Lane i is the sum of the lanes of a[i]. */
static inline vector sums_of_lanes(const vector *a) {
    return add_parts(add_parts(sums_of_parts(a), sums_of_parts(a + 4)),
                     add_parts(sums_of_parts(a + 8), sums_of_parts(a + 12)));
}

/* to[i] = the sum of the lanes of a[i], of four vectors. */
static inline void sums_of_four(const vector *a, float *to) {
    const __m512 parts = sums_of_parts(a);
    const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(parts), _mm512_extractf32x8_ps(parts, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1)));
}

/* The greatest lane; of NaN lanes any or none. */
static inline float maximum_lane(vector a) {
    return _mm512_reduce_max_ps(a);
}

static inline vector divide(vector a, vector b) {
    return _mm512_div_ps(a, b);
}

static inline vector absolute(vector a) {
    return _mm512_abs_ps(a);
}

/* b where a < 0, else c. */
static inline vector where_negative(vector a, vector b, vector c) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_LT_OQ), c, b);
}

/* The first `count` lanes of a, the others of b. */
static inline vector first_lanes(int count, vector a, vector b) {
    return _mm512_mask_blend_ps(lanes(count), b, a);
}

/* Lanes 0, 2, 4, ... of a and then of b; lanes 1, 3, 5, ... */
static inline vector even_lanes(vector a, vector b) {
    return _mm512_permutex2var_ps(a, series(0, 2), b);
}

static inline vector odd_lanes(vector a, vector b) {
    return _mm512_permutex2var_ps(a, series(1, 2), b);
}

static inline vector nearest_integer(vector a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* a * 2^n for an integral n. */
static inline vector scale(vector a, vector n) {
    return _mm512_scalef_ps(a, n);
}
