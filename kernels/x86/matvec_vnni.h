/* matmul for few pixels in integers: bands of 4, 8 or 16 rows, as vector/matvec.h has them in fp32.
 *
 * A register holds the bytes of 64 / height entries, brought into fours of a row's entries by one permutation, and is
 * multiplied by the same fours of x. */
#ifndef COPPICE_X86_MATVEC_VNNI_H
#define COPPICE_X86_MATVEC_VNNI_H

#include "../vector/few.h"
#include "bytes.h"

/* Four bytes of x for the columns of entry `at` of `count` and the three after it. */
ALWAYS_INLINE uint32_t four_of(const uint8_t *x, const uint16_t *columns, size_t at, size_t count) {
    uint32_t four = 0;
    if (!columns) {
        memcpy(&four, x + at, sizeof four);
        return four;
    }
    for (size_t i = 0; i < 4; i++)
        four |= (uint32_t)x[columns[at + i < count ? at + i : count - 1]] << (8 * i);
    return four;
}

/* The fours of so many entries, each in the lanes of its rows. */
ALWAYS_INLINE narrows fours_of(const int height, const uint8_t *x, const uint16_t *columns, size_t at, size_t count) {
    if (height == 16)
        return _mm512_set1_epi32((int)four_of(x, columns, at, count));
    uint32_t held[4] = {0};
    for (int i = 0; i < LANES / height; i++)
        held[i] = at + 4 * (size_t)i < count ? four_of(x, columns, at + 4 * (size_t)i, count) : 0;
    const __m512i all = _mm512_broadcast_i32x4(_mm_setr_epi32((int)held[0], (int)held[1], (int)held[2], (int)held[3]));
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_epi32(_mm512_srli_epi32(lane, height == 8 ? 3 : 2), all);
}

/* Sums of one band over one slab, added to sums[pixels][height]. */
ALWAYS_INLINE void add_bytes(const int height, const int pixels, const coppice_weight *weight, narrows order,
                             int64_t slab, int64_t band, const byte_x *x, float *sums) {
    const size_t step = (size_t)(64 / height);
    const size_t first = coppice_first_entry(weight, slab, band), count = coppice_entries(weight, slab, band);
    const uint16_t *columns = weight->layout == COPPICE_SPARSE ? weight->columns + first : NULL;
    const int8_t *values = (const int8_t *)weight->values + first * (size_t)height;
    const uint8_t *from = x->x + slab * weight->slab;
    narrows sum[2][most_few], values_sum[2];
    for (int chain = 0; chain < 2; chain++) {
        values_sum[chain] = _mm512_setzero_si512();
        for (int pixel = 0; pixel < pixels; pixel++)
            sum[chain][pixel] = _mm512_setzero_si512();
    }
#define ADD_FOURS(entry, held, chain)                                                                                  \
    do {                                                                                                               \
        const narrows bytes = _mm512_maskz_loadu_epi8(held, values + (entry) * (size_t)height);                        \
        const narrows value = _mm512_permutexvar_epi8(order, bytes);                                                   \
        values_sum[chain] = dot(values_sum[chain], _mm512_set1_epi8(1), value);                                        \
        for (int pixel = 0; pixel < pixels; pixel++)                                                                   \
            sum[chain][pixel] =                                                                                        \
                dot(sum[chain][pixel], fours_of(height, from + pixel * x->stride, columns, entry, count), value);      \
    } while (0)
    size_t entry = 0;
    for (; count - entry >= 2 * step; entry += 2 * step) {
        ADD_FOURS(entry, ~0ull, 0);
        ADD_FOURS(entry + step, ~0ull, 1);
    }
    for (; entry < count; entry += step) {
        const size_t left = (count - entry) * (size_t)height;
        ADD_FOURS(entry, left < 64 ? ~0ull >> (64 - left) : ~0ull, 0);
    }
#undef ADD_FOURS
    values_sum[0] = _mm512_slli_epi32(dot_add(values_sum[0], values_sum[1]), 7);
    for (int pixel = 0; pixel < pixels; pixel++) {
        int32_t lanes_of_all[LANES];
        const narrows both = dot_add(sum[0][pixel], sum[1][pixel]);
        _mm512_storeu_si512(lanes_of_all, _mm512_sub_epi32(both, values_sum[0]));
        for (int row = 0; row < height; row++) {
            int32_t total = 0;
            for (int lane = row; lane < LANES; lane += height)
                total += lanes_of_all[lane];
            sums[pixel * height + row] += (float)total * x->factor[pixel] * x->unit[pixel];
        }
    }
}

static void matvec_bytes(const coppice_matmul_args *args, float *room) {
    const coppice_weight *weight = &args->weight;
    const int64_t bands = coppice_bands(weight), slabs = coppice_slabs(weight);
    const byte_x x = bytes_of(args, room);
    const narrows order = group_order((int)weight->height);
    const int64_t end = bands * (args->work.share + 1) / args->work.shares;
    for (int64_t band = bands * args->work.share / args->work.shares; band < end; band++) {
        float sums[most_few * 16] = {0};
        for (int64_t slab = 0; slab < slabs; slab++)
#define CASE(height, pixels)                                                                                           \
    case height * 8 + pixels:                                                                                          \
        add_bytes(height, pixels, weight, order, slab, band, &x, sums);                                                \
        break;
            switch (weight->height * 8 + args->pixels) { FEW_CASES }
#undef CASE
        finish_band(args, band, sums);
    }
}

#endif
