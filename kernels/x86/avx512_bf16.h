/* Pairs of bf16: what vector/matmul_dot.h is written in, where `vdpbf16ps` (AVX512-BF16) adds two products to a sum. */
#include "avx512_dot.h"

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
