/* matmul for AVX512-BF16: pairs of bf16 where the caller allows it, all else as without. */
#include "avx512_bf16.h"

#define DOT_PANEL_VECTORS(dense) 6
/* clang-format off */
#define TILE_CASES                                                                                                     \
    CASE(1, 2, 4) CASE(1, 4, 2) CASE(1, 6, 1) CASE(4, 1, 2) CASE(4, 2, 1) CASE(4, 3, 1) CASE(4, 4, 1) CASE(4, 5, 1)    \
    CASE(4, 6, 1) CASE(8, 1, 1) CASE(8, 2, 1) CASE(8, 3, 1) CASE(16, 1, 1)
/* clang-format on */

#include "../vector/pack.h"

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

#include "../layouts.h"
#include "../vector/matmul_dot.h"

void coppice_matmul_avx512_bf16(const coppice_matmul_args *args) {
    if (args->arithmetic == COPPICE_BF16 && !coppice_is_packed(args->weight.layout) && !is_few_pixels(args))
        matmul_dots(args);
    else
        coppice_matmul_avx512_vnni(args);
}
