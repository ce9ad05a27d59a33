/* Fours of bytes: what vector/matmul_dot.h is written in, where `vpdpbusd` (AVX512-VNNI) adds four products to a sum.
 *
 * It multiplies unsigned bytes by signed ones. So x has 128 added, and sums begin with -128 times the sum of their
 * row's values. They wrap around, but what they end with is below 2^31 in a slab of 65536 columns. */
#include "avx512_dot.h"

#define DEPTH      4
#define DOT_SCALED 1
#define DOT_HEAD   4 /* of what a row's sums begin with */

typedef int8_t narrow;
typedef __m512i dots;

/* Four vectors of pixels, rounded, plus 128, as bytes, in the order that `interleave` undoes: in each quarter of the
 * register four pixels of each vector. */
static inline narrows narrowed(const vector wide[DEPTH]) {
    const __m512i transposed = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i bytes = _mm512_setzero_si512();
    bytes = _mm512_inserti32x4(bytes, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(wide[0])), 0);
    bytes = _mm512_inserti32x4(bytes, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(wide[1])), 1);
    bytes = _mm512_inserti32x4(bytes, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(wide[2])), 2);
    bytes = _mm512_inserti32x4(bytes, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(wide[3])), 3);
    return _mm512_xor_si512(_mm512_permutexvar_epi32(transposed, bytes), _mm512_set1_epi8(-128));
}

/* Four columns of four vectors of pixels each become four vectors of pixels with all four columns side by side. */
static inline void interleave(narrows x[DEPTH]) {
    const narrows low01 = _mm512_unpacklo_epi8(x[0], x[1]), high01 = _mm512_unpackhi_epi8(x[0], x[1]);
    const narrows low23 = _mm512_unpacklo_epi8(x[2], x[3]), high23 = _mm512_unpackhi_epi8(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi16(low01, low23);
    x[1] = _mm512_unpackhi_epi16(low01, low23);
    x[2] = _mm512_unpacklo_epi16(high01, high23);
    x[3] = _mm512_unpackhi_epi16(high01, high23);
}

static inline dots dot_zero(void) {
    return _mm512_setzero_si512();
}

static inline dots dot_beginning(const char *head, int64_t row) {
    return spread(head + row * DOT_HEAD);
}

static inline dots dot_add(dots a, dots b) {
    return _mm512_add_epi32(a, b);
}

static inline vector dot_value(dots sum) {
    return _mm512_cvtepi32_ps(sum);
}

/* As an instruction: GCC keeps the sums of its intrinsic in memory. */
static inline dots dot(dots sum, narrows x, narrows value) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(value));
    return sum;
}

/* --- groups of values -----------------------------------------------------------------------------------------------
 */

/* Where each value of a group stands in the weight: [row][entry] in [entry][row]. */
static narrows group_order(int height) {
    uint8_t order[4 * LANES];
    for (int i = 0; i < 4 * LANES; i++)
        order[i] = (uint8_t)((i / 4 / height * 4 + i % 4) * height + i / 4 % height);
    return _mm512_loadu_si512(order);
}

/* `count` values from `first` on as groups, after -128 times the sum of each row. */
static void write_groups(const coppice_weight *weight, narrows order, size_t first, size_t count, char *to) {
    const int height = (int)weight->height;
    const int8_t *values = (const int8_t *)weight->values + first;
    char *at = to + height * DOT_HEAD;
    __m512i sum = _mm512_setzero_si512();
    for (size_t done = 0; done < count; done += 4 * LANES, at += 4 * LANES) {
        const __mmask64 held = count - done < 4 * LANES ? ~0ull >> (4 * LANES - (count - done)) : ~0ull;
        const __m512i group = _mm512_permutexvar_epi8(order, _mm512_maskz_loadu_epi8(held, values + done));
        _mm512_storeu_si512(at, group);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), group);
    }
    /* a lane is a row of a group: groups are added up */
    if (height < 16)
        sum = _mm512_add_epi32(sum, _mm512_shuffle_i64x2(sum, sum, 0x4e));
    if (height < 8)
        sum = _mm512_add_epi32(sum, _mm512_shuffle_i64x2(sum, sum, 0xb1));
    if (height < 4) {
        sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, 0x4e));
        sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, 0xb1));
    }
    sum = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7));
    _mm512_mask_storeu_epi32(to, (__mmask16)((1u << height) - 1), sum);
}
