/* Bands of band.h, filled by vectors. */
#ifndef COPPICE_VECTOR_BAND_H
#define COPPICE_VECTOR_BAND_H

#include "../band.h"
#include "elements.h"

/* The first `count` lanes to memory, followed by `outside`. */
ALWAYS_INLINE void store_line(float *to, int64_t count, vector value, float outside) {
    store(to, count < LANES ? first_lanes((int)count, value, broadcast(outside)) : value);
}

/* to[count] = elements of x, `step` apart, from `index` on; then `outside` up to a whole vector. */
ALWAYS_INLINE void copy_line(const int type, const void *x, int64_t index, int64_t step, int64_t count, float outside,
                             float *to) {
    int64_t i = 0;
    if (step == 1) {
        for (; count - i >= LANES; i += LANES)
            store(to + i, load_as(type, x, index + i, LANES));
        if (i > 0 && i < count) /* the last vector, partly once more */
            store(to + count - LANES, load_as(type, x, index + count - LANES, LANES));
        else if (i < count)
            store_line(to, count, load_as(type, x, index, (int)count), outside);
    } else if (step == 2) {
        for (; i < count; i += LANES)
            store_line(to + i, count - i, load_alternate(type, x, index + 2 * i, index + 2 * (count - 1)), outside);
    } else {
        for (; i < count; i++)
            to[i] = coppice_load(type, x, index + i * step);
    }
}

/* `count` elements, up to a vector, of each of two lines: even[..] = columns 0, 2, ... of x from `index` on, odd[..] =
 * 1, 3, ...; then `outside` up to a whole vector. */
ALWAYS_INLINE void split(const int type, const void *x, int64_t index, const int count, float outside, float *even,
                         float *odd) {
    const int more = 2 * count - LANES;
    const vector low = load_as(type, x, index, more < 0 ? 2 * count : LANES);
    const vector high = more > 0 ? load_as(type, x, index + LANES, more) : zero();
    store_line(even, count, even_lanes(low, high), outside);
    store_line(odd, count, odd_lanes(low, high), outside);
}

/* Two lines of a row of x that begin with its columns 0 and 1, every other column being the other's. */
ALWAYS_INLINE void copy_pair(const int type, const void *x, int64_t row, const coppice_line *even,
                             const coppice_line *odd, float outside, float *to) {
    const int64_t both = even->inside < odd->inside ? even->inside : odd->inside;
    float *first = to + even->at, *second = to + odd->at;
    int64_t i = 0;
    for (; both - i >= LANES; i += LANES)
        split(type, x, row + 2 * i, LANES, outside, first + i, second + i);
    if (i > 0 && i < both) { /* the last vector, partly once more */
        i = both - LANES;
        split(type, x, row + 2 * i, LANES, outside, first + i, second + i);
    } else if (i < both) {
        split(type, x, row, (int)both, outside, first, second);
    }
    if (even->inside > both)
        copy_line(type, x, row + 2 * both, 2, even->inside - both, outside, first + both);
    if (odd->inside > both)
        copy_line(type, x, row + 2 * both + 1, 2, odd->inside - both, outside, second + both);
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
    for (int64_t number = 0, next; number < band->lines; number = next) {
        const coppice_line line = coppice_line_of(w, band, number);
        const coppice_line other = coppice_line_of(w, band, number + 1 < band->lines ? number + 1 : number);
        const int pair = w->stride_x == 2 && line.column + other.column == 1;
        next = number + 1 + pair;
        for (int64_t row = 0; row < rows; row++) {
            const int64_t y = coppice_band_row(w, band, first, row);
            const int64_t index = channel * w->channel_stride + y * w->row_stride;
            float *to = r->rows + row * r->row_floats;
            if (y < 0 || y >= w->height) { /* whole vectors: what follows is outside of x too */
                fill(to + line.at, line.inside, r->outside);
                fill(to + other.at, other.inside, r->outside);
            } else if (pair) {
                copy_pair(type, x, index, line.column ? &other : &line, line.column ? &line : &other, r->outside, to);
            } else {
                copy_line(type, x, index + line.column, w->stride_x, line.inside, r->outside, to + line.at);
            }
        }
    }
}

/* The band of `out_rows` output rows from `first` on over a channel of x. */
static void pack_room(int32_t kind, const void *x, int64_t channel, const room *r, int64_t first,
                      int64_t out_rows){EACH_TYPE(kind, fill_room(type, x, channel, r, first, out_rows))}

/* Results are made in strips of a vector: where the one from column `ox` on begins, the last being full if any is. */
ALWAYS_INLINE int64_t strip_at(int64_t width, int64_t ox) {
    return width - ox < LANES && width > LANES ? width - LANES : ox;
}

/* How many lanes of row `row` of `rows` rows `width` wide to store: all where what is too much falls into the rows
 * below it, which are stored after it. */
ALWAYS_INLINE int lanes_stored(int64_t width, int64_t row, int64_t rows) {
    return width >= LANES || (rows - row) * width >= LANES ? LANES : (int)width;
}

#endif
