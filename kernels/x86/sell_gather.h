/* matmul of COPPICE_SELL for few pixels in fp32, AVX-512: lanes are rows, and x is gathered from memory. */
#ifndef COPPICE_X86_SELL_GATHER_H
#define COPPICE_X86_SELL_GATHER_H

#include "sell_window.h"

/* sums[pixels][window_rows] of the lanes of one band. */
ALWAYS_INLINE void gather_band(const int pixels, const coppice_weight *weight, int64_t band, const float *x,
                               float *sums) {
    const uint8_t *values = weight->values;
    const int64_t width = coppice_few_width(weight);
    vector sum[most_few_pixels];
    for (int pixel = 0; pixel < pixels; pixel++)
        sum[pixel] = zero();
    for (size_t entry = weight->starts[band]; entry < weight->starts[band + 1]; entry++) {
        const __m512i offsets = _mm512_loadu_si512(weight->offsets + entry * entry_bytes);
        const __m512i bytes = _mm512_loadu_si512(values + entry * entry_bytes);
        const float *from = x + (size_t)weight->columns[entry] * sell_unit;
        prefetch_entry(weight, entry);
        COPPICE_UNROLL
        for (unsigned slot = 0; slot < sell_quad; slot++) {
            const __m512i offset = _mm512_and_si512(_mm512_srli_epi32(offsets, 8 * slot), _mm512_set1_epi32(255));
            const __m512i value = _mm512_srai_epi32(_mm512_slli_epi32(bytes, 24 - 8 * slot), 24);
            const __mmask16 used = _mm512_test_epi32_mask(value, value);
            for (int pixel = 0; pixel < pixels; pixel++) {
                const vector picked = _mm512_mask_i32gather_ps(zero(), used, offset, from + pixel * width, sizeof *x);
                sum[pixel] = _mm512_mask3_fmadd_ps(_mm512_cvtepi32_ps(value), picked, sum[pixel], used);
            }
        }
    }
    for (int pixel = 0; pixel < pixels; pixel++)
        store(sums + pixel * window_rows, sum[pixel]);
}

ALWAYS_INLINE void gather_part(const int pixels, const coppice_matmul_args *args, const float *x) {
    const windows own = windows_of(args);
    for (int64_t window = own.first; window < own.end; window++) {
        float sums[most_few_pixels * window_rows];
        for (int64_t lane = 0; lane < rows_of_window(&args->weight, window); lane += band_lanes)
            gather_band(pixels, &args->weight, (window * window_rows + lane) / band_lanes, x, sums + lane);
        finish_window(args, window, sums);
    }
}

static void matmul_sell_gather(const coppice_matmul_args *args) {
    const float *x = few_x(args, aligned(args->work.scratch));
#define CALL(type, pixels) gather_part(pixels, args, x)
    FEW_PIXELS(CALL, COPPICE_I8)
#undef CALL
}

#endif
