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

/* A band in scratch. */
typedef struct room {
    const coppice_window *window;
    coppice_band band;
    int64_t row_floats;
    float outside; /* what there is outside of x */
    int64_t *taps; /* floats from the start of a row of the band to what each tap meets in the first window */
    float *rows;
} room;

/* The places outside of x to the left and to the right are the same in all bands of a call: they are written here. */
static room begin_room(const coppice_window *w, float outside, void *scratch) {
    room r = {.window = w, .band = coppice_band_of(w, COPPICE_BAND_ROWS), .outside = outside};
    r.row_floats = r.band.lines * r.band.pitch;
    r.taps = (int64_t *)(void *)aligned(scratch);
    r.rows = aligned(r.taps + w->kernel_x);
    for (int64_t kx = 0; kx < w->kernel_x; kx++)
        r.taps[kx] = coppice_line_of(w, &r.band, coppice_tap_line(w, kx)).start + coppice_tap_offset(w, kx);
    fill(r.rows, r.band.rows * r.row_floats, outside);
    return r;
}

ALWAYS_INLINE void fill_room(const int type, const void *x, int64_t channel, const room *r, int64_t first,
                             int64_t out_rows) {
    const coppice_window *w = r->window;
    const coppice_band *band = &r->band;
    const int64_t rows = coppice_band_rows(w, band, out_rows);
    for (int64_t number = 0; number < band->lines; number++) {
        const coppice_line line = coppice_line_of(w, band, number);
        for (int64_t row = 0; row < rows; row++) {
            const int64_t y = coppice_band_row(w, band, first, row);
            float *to = r->rows + row * r->row_floats + line.at;
            if (y < 0 || y >= w->height)
                fill(to, line.inside, r->outside); /* whole vectors: what follows is outside of x too */
            else
                copy_line(type, x, channel * w->channel_stride + y * w->row_stride + line.column, w->stride_x,
                          line.inside, to);
        }
    }
}

/* The band of `out_rows` output rows from `first` on over a channel of x. */
static void pack_room(int32_t type, const void *x, int64_t channel, const room *r, int64_t first, int64_t out_rows) {
    switch (type) {
    case COPPICE_F16:
        fill_room(COPPICE_F16, x, channel, r, first, out_rows);
        break;
    case COPPICE_BF16:
        fill_room(COPPICE_BF16, x, channel, r, first, out_rows);
        break;
    default:
        fill_room(COPPICE_F32, x, channel, r, first, out_rows);
    }
}

#endif
