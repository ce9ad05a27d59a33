/* What pairs of bf16 and fours of bytes have in common: a group of one row is 32 bits, sixteen of them are a register.
 */
#include "avx512.h"

#include <string.h>

#define DOT_BYTES 4 /* of a group, of one row */

typedef __m512i narrows;

static inline narrows narrow_zero(void) {
    return _mm512_setzero_si512();
}

static inline narrows narrow_load(const char *from) {
    return _mm512_loadu_si512(from);
}

static inline void narrow_store(char *to, narrows value) {
    _mm512_storeu_si512(to, value);
}

/* One group of one row, in all lanes. */
static inline narrows spread(const char *group) {
    int32_t held;
    memcpy(&held, group, sizeof held);
    return _mm512_set1_epi32(held);
}
