/* How the windows over a channel are laid out in scratch: a band of output rows at a time, in fp32.
 *
 * Along x, the elements that one tap meets in one window after the other stand side by side as a line, so that taps are
 * read in whole vectors whatever the stride and the dilation. Taps share a line where they are a multiple of the stride
 * apart; where there are fewer taps than the stride is wide, each has a line of its own. Along y, the rows of x follow
 * each other from the band's first to its last, or, where that is less, those of one window after the other. */
#ifndef COPPICE_BAND_H
#define COPPICE_BAND_H

#include "kernels.h"

enum { band_line = 16, band_floats = 6144 };

typedef struct coppice_band {
    int64_t lines;    /* of one row of x */
    int64_t pitch;    /* floats from line to line */
    int64_t row_step; /* rows of the band from one window to the next below it */
    int64_t tap_step; /* rows of the band from one tap to the next below it */
    int64_t out_rows; /* output rows of a band; the last one may have fewer */
    int64_t rows;     /* of x in a band, and some more, up to the next window, that may be read */
} coppice_band;

/* A line: the elements of x that it holds are columns `column`, `column` + stride_x, ... and lie from `at` on, which is
 * a multiple of band_line, in the floats of their row of the band; what they are preceded and followed by is outside of
 * x. Its taps count from `start`. */
typedef struct coppice_line {
    int64_t column, inside, at, start;
} coppice_line;

/* Which line a tap is read from, and where it begins in it. */
static inline int64_t coppice_tap_line(const coppice_window *w, int64_t kx) {
    return w->stride_x <= w->kernel_x ? kx * w->dilation_x % w->stride_x : kx;
}

static inline int64_t coppice_tap_offset(const coppice_window *w, int64_t kx) {
    return w->stride_x <= w->kernel_x ? kx * w->dilation_x / w->stride_x : 0;
}

/* Elements of a line. */
static inline int64_t coppice_line_length(const coppice_window *w) {
    return w->out_width + coppice_tap_offset(w, w->kernel_x - 1);
}

static inline coppice_line coppice_line_of(const coppice_window *w, const coppice_band *band, int64_t line) {
    const int64_t first = (w->stride_x <= w->kernel_x ? line : line * w->dilation_x) - w->pad_x;
    const int64_t length = coppice_line_length(w), gap = first < 0 ? (w->stride_x - 1 - first) / w->stride_x : 0;
    const int64_t before = gap < length ? gap : length, column = first + before * w->stride_x;
    const int64_t held = column < w->width ? (w->width - 1 - column) / w->stride_x + 1 : 0;
    const int64_t at = line * band->pitch + (before + band_line - 1) / band_line * band_line;
    return (coppice_line){column, held < length - before ? held : length - before, at, at - before};
}

/* Rows of x under `out_rows` output rows. */
static inline int64_t coppice_band_rows(const coppice_window *w, const coppice_band *band, int64_t out_rows) {
    return (out_rows - 1) * band->row_step + (w->kernel_y - 1) * band->tap_step + 1;
}

/* The row of x that is row `row` of a band, which may lie outside of it, the band beginning with output row `first`. */
static inline int64_t coppice_band_row(const coppice_window *w, const coppice_band *band, int64_t first, int64_t row) {
    if (band->row_step == w->stride_y && band->tap_step == w->dilation_y)
        return first * w->stride_y + row - w->pad_y;
    return (first + row / w->kernel_y) * w->stride_y + row % w->kernel_y * w->dilation_y - w->pad_y;
}

/* For a window with output; `least` output rows at least. */
static inline coppice_band coppice_band_of(const coppice_window *w, int64_t least) {
    const int apart = least * w->kernel_y < (least - 1) * w->stride_y + (w->kernel_y - 1) * w->dilation_y + 1;
    coppice_band band = {.lines = w->stride_x <= w->kernel_x ? w->stride_x : w->kernel_x,
                         .row_step = apart ? w->kernel_y : w->stride_y,
                         .tap_step = apart ? 1 : w->dilation_y};
    band.pitch = (coppice_line_length(w) + band_line - 1) / band_line * band_line + 2 * band_line;
    const int64_t room = band_floats / band.lines / band.pitch - coppice_band_rows(w, &band, 1);
    const int64_t fitting = room > 0 ? room / band.row_step + 1 : 1;
    band.out_rows = fitting > least ? fitting : least;
    band.out_rows = band.out_rows < w->out_height ? band.out_rows : w->out_height;
    band.rows = coppice_band_rows(w, &band, band.out_rows) + band.row_step - 1;
    return band;
}

/* Bytes for a band, the places of kernel_x taps and the alignment of both, or COPPICE_SIZE where they cannot be
 * addressed. */
static inline int64_t coppice_band_bytes(const coppice_window *w, int64_t least) {
    if (w->out_height == 0 || w->out_width == 0)
        return 0;
    const coppice_band band = coppice_band_of(w, least);
    const int64_t others = w->kernel_x * (int64_t)sizeof(int64_t) + 2 * COPPICE_SCRATCH_ALIGNMENT;
    const int64_t most = (PTRDIFF_MAX - others) / (int64_t)sizeof(float);
    if (band.pitch > most / band.lines || band.rows > most / (band.lines * band.pitch))
        return COPPICE_SIZE;
    return band.rows * band.lines * band.pitch * (int64_t)sizeof(float) + others;
}

#endif
