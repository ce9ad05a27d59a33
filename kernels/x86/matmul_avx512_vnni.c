/* matmul for AVX512-VNNI, with VBMI and VBMI2: integers where the caller allows it, all else as without. */
#include "avx512_vnni.h"

#define DOT_PANEL_VECTORS(dense) ((dense) ? 6 : 4)
/* clang-format off */
#define TILE_CASES                                                                                                     \
    CASE(1, 4, 2) CASE(4, 1, 2) CASE(4, 2, 1) CASE(4, 3, 1) CASE(4, 4, 1) CASE(4, 5, 1) CASE(4, 6, 1) CASE(8, 1, 1)    \
    CASE(8, 2, 1) CASE(8, 3, 1) CASE(16, 1, 1)
/* clang-format on */

#include "../vector/pack.h"

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

#include "../vector/matmul_dot.h"
#include "bitmask_bytes.h"
#include "matvec_vnni.h"
#include "sell.h"

void coppice_matmul_avx512_vnni(const coppice_matmul_args *args) {
    const int32_t layout = args->weight.layout;
    const int bytes = args->arithmetic == COPPICE_I8 && args->weight.type == COPPICE_I8;
    if (bytes && layout == COPPICE_SELL && is_few_packed(args))
        repeat_few(args, matmul_sell);
    else if (bytes && layout == COPPICE_BITMASK && is_few_packed(args))
        repeat_few(args, matmul_bitmask_bytes);
    else if (!bytes || coppice_is_packed(layout))
        coppice_matmul_avx512(args);
    else if (is_few_pixels(args))
        matvec_bytes(args, aligned(args->work.scratch));
    else
        matmul_dots(args);
}
