/* Bands of band.h, filled by vectors. */
#ifndef COPPICE_VECTOR_BAND_H
#define COPPICE_VECTOR_BAND_H

#include "../band.h"
#include "elements.h"

/* to[count] = elements of x, `step` apart, from `index` on. No more is written: what follows is outside of x. */
ALWAYS_INLINE void copy_line(const int type, const void *x, int64_t index, int64_t step, int64_t count, float *to) {
    int64_t i = 0;
    if (step == 1) {
        for (; count - i >= LANES; i += LANES)
            store(to + i, load_as(type, x, index + i, LANES));
        if (i > 0 && i < count) /* the last vector, partly once more */
            i = count - LANES;
        if (i < count)
            store_as(COPPICE_F32, to, i, (int)(count - i), load_as(type, x, index + i, (int)(count - i)));
    } else if (step == 2) {
        for (; count - i > LANES; i += LANES)
            store(to + i,
                  even_lanes(load_as(type, x, index + 2 * i, LANES), load_as(type, x, index + 2 * i + LANES, LANES)));
        if (i < count)
            store_as(COPPICE_F32, to, i, (int)(count - i),
                     load_alternate(type, x, index + 2 * i, index + 2 * (count - 1)));
    } else {
        for (; i < count; i++)
            to[i] = coppice_load(type, x, index + i * step);
    }
}

ALWAYS_INLINE void fill_band(const int type, const void *x, int64_t channel, const coppice_window *w,
                             const coppice_band *band, int64_t first, int64_t out_rows, float outside, float *to) {
    const int64_t rows = coppice_band_rows(w, band, out_rows), row_floats = band->lines * band->pitch;
    for (int64_t number = 0; number < band->lines; number++) {
        const coppice_line line = coppice_line_of(w, band, number);
        for (int64_t row = 0; row < rows; row++) {
            const int64_t y = coppice_band_row(w, band, first, row);
            if (y < 0 || y >= w->height)
                fill(to + row * row_floats + line.at, line.inside,
                     outside); /* the rest of its last vector is outside */
            else
                copy_line(type, x, channel * w->channel_stride + y * w->row_stride + line.column, w->stride_x,
                          line.inside, to + row * row_floats + line.at);
        }
    }
}

/* The band of `out_rows` output rows from `first` on over a channel of x. What lies outside of x to the left and to the
 * right must be there: see clear_band. */
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

/* Once, before the first band of a call: the places outside of x are the same in all bands and channels. */
static void clear_band(const coppice_band *band, float outside, float *to) {
    fill(to, band->rows * band->lines * band->pitch, outside);
}

/* Floats from the start of a row of a band to what a tap meets in the first window. */
static inline int64_t tap_of(const coppice_window *w, const coppice_band *band, int64_t kx) {
    return coppice_line_of(w, band, coppice_tap_line(w, kx)).start + coppice_tap_offset(w, kx);
}

#endif
