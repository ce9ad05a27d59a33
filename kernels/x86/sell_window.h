/* What the two kernels of COPPICE_SELL have in common: windows of rows, whose y is written at once. AVX-512. */
#ifndef COPPICE_X86_SELL_WINDOW_H
#define COPPICE_X86_SELL_WINDOW_H

#include "few.h"

enum { entry_bytes = band_lanes * sell_quad, sell_ahead = 16 /* entries between a use and its prefetch */ };

/* Windows of rows, which are dealt to the shares. */
typedef struct windows {
    int64_t first, end;
} windows;

static inline windows windows_of(const coppice_matmul_args *args) {
    const int64_t all = (args->weight.rows + window_rows - 1) / window_rows;
    const int64_t share = args->work.share, shares = args->work.shares;
    return (windows){all * share / shares, all * (share + 1) / shares};
}

/* The rows of a window. */
static inline int64_t rows_of_window(const coppice_weight *weight, int64_t window) {
    const int64_t left = weight->rows - window * window_rows;
    return left < window_rows ? left : window_rows;
}

static inline void prefetch_entry(const coppice_weight *weight, size_t entry) {
    const size_t at = (entry + sell_ahead) * entry_bytes;
    _mm_prefetch((const char *)((uintptr_t)weight->offsets + at), _MM_HINT_T0);
    _mm_prefetch((const char *)((uintptr_t)weight->values + at), _MM_HINT_T0);
}

/* y of a window from the sums of its lanes, [pixels][window_rows]. */
static inline void finish_window(const coppice_matmul_args *args, int64_t window, const float *sums) {
    const int64_t first = window * window_rows, rows = rows_of_window(&args->weight, window);
    const uint8_t *lanes = args->weight.lanes;
    float ordered[most_few_pixels * window_rows];
    for (int64_t pixel = 0; pixel < args->pixels && lanes; pixel++)
        for (int64_t row = 0; row < rows; row++)
            ordered[pixel * window_rows + row] = sums[pixel * window_rows + lanes[first + row]];
    finish_few(args, first, rows, lanes ? ordered : sums, window_rows);
}

#endif
