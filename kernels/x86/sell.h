/* matmul of COPPICE_SELL for few pixels in integers, AVX-512 with VBMI and VNNI. The offsets of an entry pick their
 * bytes of x out of a window of 256 columns, which is four registers; four neighbouring products are added into the sum
 * of their row. */
#ifndef COPPICE_X86_SELL_H
#define COPPICE_X86_SELL_H

#include "bytes.h"
#include "sell_window.h"

/* x[offset] for each of 64 offsets. */
ALWAYS_INLINE __m512i pick(const uint8_t *x, __m512i offsets) {
    const __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(x), offsets, _mm512_loadu_si512(x + 64));
    const __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(x + 128), offsets, _mm512_loadu_si512(x + 192));
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(offsets), high);
}

/* sums[pixels][window_rows] of the lanes of one band. */
ALWAYS_INLINE void add_sell_band(const int pixels, const coppice_weight *weight, int64_t band, const byte_x *x,
                                 float *sums) {
    const uint8_t *offsets = weight->offsets, *values = weight->values;
    const size_t end = weight->starts[band + 1];
    const __m512i shift = _mm512_set1_epi8((char)128);
    vector total[most_few_pixels];
    for (int pixel = 0; pixel < pixels; pixel++)
        total[pixel] = zero();
    for (size_t entry = weight->starts[band], stop; entry < end; entry = stop) {
        stop = end - entry < bytes_steps ? end : entry + bytes_steps;
        __m512i sum[most_few_pixels], shifted = _mm512_setzero_si512();
        for (int pixel = 0; pixel < pixels; pixel++)
            sum[pixel] = _mm512_setzero_si512();
        for (size_t e = entry; e < stop; e++) {
            const __m512i offset = _mm512_loadu_si512(offsets + e * entry_bytes);
            const __m512i value = _mm512_loadu_si512(values + e * entry_bytes);
            const uint8_t *from = x->x + (size_t)weight->columns[e] * sell_unit;
            prefetch_entry(weight, e);
            shifted = _mm512_dpbusd_epi32(shifted, shift, value);
            for (int pixel = 0; pixel < pixels; pixel++)
                sum[pixel] = _mm512_dpbusd_epi32(sum[pixel], pick(from + pixel * x->stride, offset), value);
        }
        for (int pixel = 0; pixel < pixels; pixel++)
            total[pixel] = add(total[pixel], _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[pixel], shifted)));
    }
    for (int pixel = 0; pixel < pixels; pixel++)
        store(sums + pixel * window_rows, of_bytes(x, pixel, total[pixel]));
}

ALWAYS_INLINE void sell_part(const int pixels, const coppice_matmul_args *args, const byte_x *x) {
    const windows own = windows_of(args);
    for (int64_t window = own.first; window < own.end; window++) {
        float sums[most_few_pixels * window_rows];
        for (int64_t lane = 0; lane < rows_of_window(&args->weight, window); lane += band_lanes)
            add_sell_band(pixels, &args->weight, (window * window_rows + lane) / band_lanes, x, sums + lane);
        finish_window(args, window, sums);
    }
}

static void matmul_sell(const coppice_matmul_args *args) {
    const byte_x x = bytes_of(args, aligned(args->work.scratch));
#define CALL(type, pixels) sell_part(pixels, args, &x)
    FEW_PIXELS(CALL, COPPICE_I8)
#undef CALL
}

#endif
