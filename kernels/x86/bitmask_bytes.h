/* matmul of COPPICE_BITMASK for few pixels in integers, AVX-512 with VBMI2 and VNNI: as bitmask.h does it, 64 columns
 * at a time. */
#ifndef COPPICE_X86_BITMASK_BYTES_H
#define COPPICE_X86_BITMASK_BYTES_H

#include "bytes.h"

enum { byte_rows = 4, byte_block = 64 /* rows whose y is written at once */ };

/* The bytes of 64 columns: `value` expanded to where `mask` has bits, zeros elsewhere. In place: see bitmask.h. */
ALWAYS_INLINE __m512i expand_bytes(__m512i value, __mmask64 mask) {
    __asm__("vpexpandb %0, %0 %{%1%} %{z%}" : "+v"(value) : "Yk"(mask));
    return value;
}

ALWAYS_INLINE __mmask64 first_bytes(size_t count) {
    return count < mask_columns ? ((uint64_t)1 << count) - 1 : ~(uint64_t)0;
}

/* 128 times the sums of `count` values side by side: what the 128 of x adds to a row. */
static inline __m512i shifted_by(const int8_t *values, size_t count) {
    __m512i sum = _mm512_setzero_si512();
    for (size_t i = 0; i < count; i += mask_columns)
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8((char)128),
                                  _mm512_maskz_loadu_epi8(first_bytes(count - i), values + i));
    return sum;
}

/* sums[pixels][byte_block] of `rows` rows from `row` on; `last`: behind their entries there may be no vector more. */
ALWAYS_INLINE void add_byte_rows(const int rows, const int last, const int pixels, const coppice_weight *weight,
                                 int64_t row, const byte_x *x, float *sums) {
    const int64_t words = coppice_mask_words(weight);
    const uint64_t *masks = weight->masks + row * words;
    const int8_t *values[byte_rows];
    for (int r = 0; r < rows; r++) {
        values[r] = (const int8_t *)weight->values + weight->starts[row + r];
        for (int pixel = 0; pixel < pixels; pixel++)
            sums[pixel * byte_block + r] = 0.0f;
    }
    for (int64_t first = 0, stop; first < words; first = stop) {
        stop = words - first < bytes_steps ? words : first + bytes_steps;
        __m512i sum[byte_rows][most_few_pixels];
        const int8_t *begin[byte_rows];
        for (int r = 0; r < rows; r++) {
            begin[r] = values[r];
            for (int pixel = 0; pixel < pixels; pixel++)
                sum[r][pixel] = _mm512_setzero_si512();
        }
        for (int64_t word = first; word < stop; word++) {
            __m512i held[most_few_pixels];
            for (int pixel = 0; pixel < pixels; pixel++)
                held[pixel] = _mm512_loadu_si512(x->x + pixel * x->stride + word * mask_columns);
            COPPICE_UNROLL
            for (int r = 0; r < rows; r++) {
                const uint64_t mask = masks[r * words + word];
                const size_t count = (size_t)__builtin_popcountll(mask);
                const __m512i packed =
                    last ? _mm512_maskz_loadu_epi8(first_bytes(count), values[r]) : _mm512_loadu_si512(values[r]);
                const __m512i value = expand_bytes(packed, mask);
                values[r] += count;
                for (int pixel = 0; pixel < pixels; pixel++)
                    sum[r][pixel] = _mm512_dpbusd_epi32(sum[r][pixel], held[pixel], value);
            }
        }
        for (int r = 0; r < rows; r++) {
            const __m512i shifted = shifted_by(begin[r], (size_t)(values[r] - begin[r]));
            for (int pixel = 0; pixel < pixels; pixel++) {
                const vector part = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[r][pixel], shifted));
                sums[pixel * byte_block + r] += sum_lanes(part);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int pixel = 0; pixel < pixels; pixel++)
            sums[pixel * byte_block + r] *= x->factor[pixel], sums[pixel * byte_block + r] *= x->unit[pixel];
}

ALWAYS_INLINE void byte_part(const int pixels, const coppice_matmul_args *args, int64_t first, int64_t end,
                             const byte_x *x) {
    const coppice_weight *weight = &args->weight;
    float sums[most_few_pixels * byte_block];
    for (int64_t row = first; row < end; row += byte_block) {
        const int64_t rows = end - row < byte_block ? end - row : byte_block;
        int64_t r = 0;
        for (; rows - r >= byte_rows && weight->starts[row + r + byte_rows] + mask_columns <= weight->entries;
             r += byte_rows)
            add_byte_rows(byte_rows, 0, pixels, weight, row + r, x, sums + r);
        for (; r < rows; r++)
            add_byte_rows(1, 1, pixels, weight, row + r, x, sums + r);
        finish_few(args, row, rows, sums, byte_block);
    }
}

static void matmul_bitmask_bytes(const coppice_matmul_args *args) {
    const int64_t rows = args->weight.rows, share = args->work.share, shares = args->work.shares;
    const int64_t first = rows * share / shares, end = rows * (share + 1) / shares;
    const byte_x x = bytes_of(args, aligned(args->work.scratch));
#define CALL(type, pixels) byte_part(pixels, args, first, end, &x)
    FEW_PIXELS(CALL, COPPICE_I8)
#undef CALL
}

#endif
