/* Pairs of bf16: what vector/matmul_dot.h is written in, where `vdpbf16ps` (AVX512-BF16) adds two products to a sum. */
#include "avx512_dot.h"

#include "../vector/elements.h"

#define DEPTH      2
#define DOT_SCALED 0
#define DOT_HEAD   0

typedef uint16_t narrow;
typedef vector dots;

/* Two vectors of pixels as bf16, in the order that `interleave` undoes: in each quarter of the register four pixels of
 * the first vector and then four of the second. */
static inline narrows narrowed(const vector wide[DEPTH]) {
    const __m512i quarters = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm512_permutexvar_epi64(quarters, (__m512i)_mm512_cvtne2ps_pbh(wide[1], wide[0]));
}

/* Two columns of two vectors of pixels each become two vectors of pixels with both columns side by side. */
static inline void interleave(narrows x[DEPTH]) {
    const narrows low = _mm512_unpacklo_epi16(x[0], x[1]);
    x[1] = _mm512_unpackhi_epi16(x[0], x[1]);
    x[0] = low;
}

static inline dots dot_zero(void) {
    return zero();
}

static inline dots dot_beginning(const char *head, int64_t row) {
    (void)head, (void)row;
    return zero();
}

static inline dots dot_add(dots a, dots b) {
    return add(a, b);
}

static inline vector dot_value(dots sum) {
    return sum;
}

static inline dots dot(dots sum, narrows x, narrows value) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)value);
}

/* --- groups of values -----------------------------------------------------------------------------------------------
 */

/* Where each value of a group stands in the weight: [row][entry] in [entry][row]. */
static narrows group_order(int height) {
    uint16_t order[2 * LANES];
    for (int i = 0; i < 2 * LANES; i++)
        order[i] = (uint16_t)((i / 2 / height * 2 + i % 2) * height + i / 2 % height);
    return _mm512_loadu_si512(order);
}

/* `count` values from `first` on, rounded, as groups. */
static void write_groups(const coppice_weight *weight, narrows order, size_t first, size_t count, char *to) {
    if (weight->type == COPPICE_BF16) {
        const uint16_t *values = (const uint16_t *)weight->values + first;
        for (size_t done = 0; done < count; done += 2 * LANES, to += 4 * LANES) {
            const __mmask32 held = count - done < 2 * LANES ? ~0u >> (2 * LANES - (count - done)) : ~0u;
            _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, _mm512_maskz_loadu_epi16(held, values + done)));
        }
        return;
    }
    for (size_t done = 0; done < count; done += 2 * LANES, to += 4 * LANES) {
        const int left = count - done < 2 * LANES ? (int)(count - done) : 2 * LANES;
        const vector low = values_at(weight->type, weight->values, first + done, left < LANES ? left : LANES);
        const vector high =
            left < LANES ? zero() : values_at(weight->type, weight->values, first + done + LANES, left - LANES);
        const __m512i values = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, values));
    }
}
