/* Vectors of eight fp32 in AVX2, FMA and F16C: the operations that the algorithms of vector/ are written in. */
#include "../kernels.h"

#include <immintrin.h>
#include <string.h>

#define LANES 8

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

/* The same value, read from memory once: compilers would rather give each instruction that uses it a load of its own.
 */
static inline vector in_register(vector value) {
    __asm__("" : "+x"(value));
    return value;
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

/* Lanes first .. end - 1, the others zero and not read. */
static inline vector load_lanes(const float *from, int first, int end) {
    return _mm256_maskload_ps(from, _mm256_andnot_si256(lanes(first), lanes(end)));
}

static inline __m128i load_half_lanes(const uint16_t *from, int first, int end) {
    uint16_t padded[LANES] = {0};
    memcpy(padded + first, from + first, (size_t)(end - first) * sizeof *from);
    return _mm_loadu_si128((const __m128i *)padded);
}

static inline __m128i load_halves(const uint16_t *from, int count) {
    uint16_t padded[LANES] = {0};
    if (count == LANES)
        return _mm_loadu_si128((const __m128i *)from);
    memcpy(padded, from, (size_t)count * sizeof *from);
    return _mm_loadu_si128((const __m128i *)padded);
}

static inline void store_halves(uint16_t *to, int count, __m128i halves) {
    uint16_t padded[LANES];
    if (count == LANES) {
        _mm_storeu_si128((__m128i *)to, halves);
    } else {
        _mm_storeu_si128((__m128i *)padded, halves);
        memcpy(to, padded, (size_t)count * sizeof *to);
    }
}

static inline vector from_f16(__m128i halves) {
    return _mm256_cvtph_ps(halves);
}

static inline __m128i to_f16(vector value) {
    return _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline vector from_bf16(__m128i halves) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

static inline __m128i to_bf16(vector value) {
    const __m256i bits = _mm256_castps_si256(value), high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i result = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
}

static inline vector load_i8(const int8_t *from, int count) {
    int8_t padded[LANES] = {0};
    if (count < LANES)
        from = memcpy(padded, from, (size_t)count);
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
}

/* v with part `part` of its `parts` equal parts filled with *from. */
static inline vector broadcast_into(vector v, int part, int parts, const float *from) {
    const __m256i number = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i own = _mm256_srli_epi32(number, parts == 1 ? 3 : 2);
    return _mm256_blendv_ps(v, _mm256_broadcast_ss(from),
                            _mm256_castsi256_ps(_mm256_cmpeq_epi32(own, _mm256_set1_epi32(part))));
}

static inline vector add(vector a, vector b) {
    return _mm256_add_ps(a, b);
}

static inline vector subtract(vector a, vector b) {
    return _mm256_sub_ps(a, b);
}

static inline vector multiply(vector a, vector b) {
    return _mm256_mul_ps(a, b);
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

static inline vector square_root(vector a) {
    return _mm256_sqrt_ps(a);
}

/* NaN where a or b is. */
static inline vector greatest(vector a, vector b) {
    return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}

static inline float sum_lanes(vector a) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

/* In each 128 bits, the sums of four vectors over those bits. */
static inline vector sums_of_parts(const vector *a) {
    return _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
}

/* Lane i is the sum of the lanes of a[i]. */
static inline vector sums_of_lanes(const vector *a) {
    const __m256 low = sums_of_parts(a), high = sums_of_parts(a + 4);
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

/* to[i] = the sum of the lanes of a[i], of four vectors. */
static inline void sums_of_four(const vector *a, float *to) {
    const __m256 parts = sums_of_parts(a);
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(parts), _mm256_extractf128_ps(parts, 1)));
}

/* The greatest lane; of NaN lanes any or none. */
static inline float maximum_lane(vector a) {
    __m128 most = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

static inline vector divide(vector a, vector b) {
    return _mm256_div_ps(a, b);
}

static inline vector absolute(vector a) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}

/* b where a < 0, else c. */
static inline vector where_negative(vector a, vector b, vector c) {
    return _mm256_blendv_ps(c, b, _mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_LT_OQ));
}

/* The first `count` lanes of a, the others of b. */
static inline vector first_lanes(int count, vector a, vector b) {
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(lanes(count)));
}

/* Lanes 0, 2, 4, ... of a and then of b; lanes 1, 3, 5, ... */
static inline vector even_lanes(vector a, vector b) {
    const __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
}

static inline vector odd_lanes(vector a, vector b) {
    const __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
}

static inline vector nearest_integer(vector a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline vector power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

/* a * 2^n for an integral n in -252 .. 252: in two steps, so that it may overflow and underflow. */
static inline vector scale(vector a, vector n) {
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    return _mm256_mul_ps(_mm256_mul_ps(a, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
}
