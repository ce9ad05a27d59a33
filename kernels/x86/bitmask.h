/* matmul of COPPICE_BITMASK for few pixels, AVX-512: values side by side in memory are loaded as a vector and expanded
 * to the columns that their mask says. Rows that are multiplied together share the loads of x. */
#ifndef COPPICE_X86_BITMASK_H
#define COPPICE_X86_BITMASK_H

#include "few.h"

enum { bitmask_rows = 4, bitmask_block = 64 /* rows whose y is written at once */ };

/* The values of sixteen columns: `value` expanded to where `mask` has bits, zeros elsewhere. In place: the intrinsic
 * takes another register, and Zen 4 waits for what is in it, which doubles the time of the kernel. */
ALWAYS_INLINE vector expand(vector value, __mmask16 mask) {
    __asm__("vexpandps %0, %0 %{%1%} %{z%}" : "+v"(value) : "Yk"(mask));
    return value;
}

/* sums[pixels][bitmask_block] of `rows` rows from `row` on; `last`: behind their entries there may be no vector more.
 */
ALWAYS_INLINE void add_bitmask_rows(const int rows, const int last, const int type, const int pixels,
                                    const coppice_weight *weight, int64_t row, const float *x, float *sums) {
    const int64_t words = coppice_mask_words(weight), width = coppice_few_width(weight);
    const uint64_t *masks = weight->masks + row * words;
    const void *values = weight->values;
    size_t at[bitmask_rows];
    vector sum[bitmask_rows][most_few_pixels];
    for (int r = 0; r < rows; r++) {
        at[r] = weight->starts[row + r];
        for (int pixel = 0; pixel < pixels; pixel++)
            sum[r][pixel] = zero();
    }
    for (int64_t word = 0; word < words; word++) {
        uint64_t mask[bitmask_rows];
        for (int r = 0; r < rows; r++)
            mask[r] = masks[r * words + word];
        COPPICE_UNROLL
        for (int part = 0; part < mask_columns / LANES; part++) {
            vector held[most_few_pixels];
            for (int pixel = 0; pixel < pixels; pixel++)
                held[pixel] = load(x + pixel * width + word * mask_columns + part * LANES);
            COPPICE_UNROLL
            for (int r = 0; r < rows; r++) {
                const __mmask16 own = (__mmask16)(mask[r] >> (part * LANES));
                const int count = __builtin_popcount(own);
                const vector value = expand(values_at(type, values, at[r], last ? count : LANES), own);
                at[r] += (size_t)count;
                for (int pixel = 0; pixel < pixels; pixel++)
                    sum[r][pixel] = _mm512_mask3_fmadd_ps(value, held[pixel], sum[r][pixel], own);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int pixel = 0; pixel < pixels; pixel++)
            sums[pixel * bitmask_block + r] = sum_lanes(sum[r][pixel]);
}

ALWAYS_INLINE void bitmask_part(const int type, const int pixels, const coppice_matmul_args *args, int64_t first,
                                int64_t end, const float *x) {
    const coppice_weight *weight = &args->weight;
    float sums[most_few_pixels * bitmask_block];
    for (int64_t row = first; row < end; row += bitmask_block) {
        const int64_t rows = end - row < bitmask_block ? end - row : bitmask_block;
        int64_t r = 0;
        for (; rows - r >= bitmask_rows && weight->starts[row + r + bitmask_rows] + LANES <= weight->entries;
             r += bitmask_rows)
            add_bitmask_rows(bitmask_rows, 0, type, pixels, weight, row + r, x, sums + r);
        for (; r < rows; r++)
            add_bitmask_rows(1, 1, type, pixels, weight, row + r, x, sums + r);
        finish_few(args, row, rows, sums, bitmask_block);
    }
}

static void matmul_bitmask(const coppice_matmul_args *args) {
    const int64_t rows = args->weight.rows, share = args->work.share, shares = args->work.shares;
    const int64_t first = rows * share / shares, end = rows * (share + 1) / shares;
    const float *x = few_x(args, aligned(args->work.scratch));
#define CALL(type, pixels) bitmask_part(type, pixels, args, first, end, x)
    FEW_TYPES(CALL)
#undef CALL
}

#endif
