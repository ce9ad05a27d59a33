/* Bands of band.h, filled by vectors. */
#ifndef COPPICE_VECTOR_BAND_H
#define COPPICE_VECTOR_BAND_H

#include "../band.h"
#include "elements.h"

ALWAYS_INLINE void fill_band(const int type, const void *x, int64_t channel, const coppice_window *w,
                             const coppice_band *band, int64_t first, int64_t out_rows, float outside, float *to) {
    const int64_t rows = coppice_band_rows(w, band, out_rows), length = coppice_line_length(w);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t y = coppice_band_row(w, band, first, row);
        for (int64_t line = 0; line < band->lines; line++, to += band->pitch) {
            float *begin = to + coppice_line_shift(w, line);
            if (y < 0 || y >= w->height)
                fill(begin, length, outside);
            else
                copy_run(type, x, channel * w->channel_stride + y * w->row_stride, w->width,
                         coppice_line_start(w, line), w->stride_x, length, outside, begin);
        }
    }
}

/* The band of `out_rows` output rows from `first` on over a channel of x, `outside` where x has no element. */
static void pack_band(int32_t type, const void *x, int64_t channel, const coppice_window *w, const coppice_band *band,
                      int64_t first, int64_t out_rows, float outside, float *to) {
    switch (type) {
    case COPPICE_F16:
        fill_band(COPPICE_F16, x, channel, w, band, first, out_rows, outside, to);
        break;
    case COPPICE_BF16:
        fill_band(COPPICE_BF16, x, channel, w, band, first, out_rows, outside, to);
        break;
    default:
        fill_band(COPPICE_F32, x, channel, w, band, first, out_rows, outside, to);
    }
}

/* Floats from the start of a row of a band to what a tap meets in the first window. */
static inline int64_t tap_of(const coppice_window *w, const coppice_band *band, int64_t kx) {
    const int64_t line = coppice_tap_line(w, kx);
    return line * band->pitch + coppice_line_shift(w, line) + coppice_tap_offset(w, kx);
}

#endif
