/* Panels of pixels: which of them a share computes, where x may stay, and y from the sums of one. */
#ifndef COPPICE_VECTOR_PANEL_H
#define COPPICE_VECTOR_PANEL_H

#include "activation.h"
#include "windows.h"

/* Loops over the registers of a tile are unrolled whole, however long their body: else the sums live in memory. */
#define COPPICE_UNROLL _Pragma("GCC unroll 20")

/* So few that the lanes of a vector had better be rows (matvec.h), which bands of several rows allow. */
static inline int is_few_pixels(const coppice_matmul_args *args) {
    return args->pixels <= COPPICE_FEW_PIXELS && args->weight.height > 1 && !args->window;
}

/* One pixel of CSR: sums are taken one by one. */
static inline int is_one_pixel(const coppice_matmul_args *args) {
    return args->pixels == 1 && args->weight.layout == COPPICE_SPARSE && args->weight.height == 1;
}

static inline int lanes_are_pixels(const coppice_matmul_args *args) {
    return !is_few_pixels(args) && !is_one_pixel(args);
}

/* What a share computes: some bands of some panels. The pixels are `vectors` vectors, cut into `panels` panels. */
typedef struct deal {
    int64_t vectors, panels, first_panel, end_panel, first_band, end_band;
} deal;

/* Panels are dealt to the shares where each gets several, else bands. A share of bands packs all of x, which has to be
 * little beside what its bands do with it; but shares of one or two panels hold each other up where these meet, as what
 * the hardware reads ahead of a row of y is of the other's. */
static inline int deal_panels(const coppice_matmul_args *args, int64_t vectors, int64_t panels) {
    enum { panels_each = 4, uses_each = 12, uses_of_window = 160 }; /* uses of an element of x */
    const int64_t shares = args->work.shares, least = args->window ? uses_of_window : uses_each;
    const int64_t uses = args->weight.entries * args->weight.height / (args->weight.cols + 1);
    if (shares == 1 || vectors < shares || panels <= shares / 2)
        return 0;
    return panels >= panels_each * shares || uses < least * shares;
}

static inline deal deal_of(const coppice_matmul_args *args, int lanes, int64_t widest) {
    const int64_t bands = coppice_bands(&args->weight), share = args->work.share, shares = args->work.shares;
    const int64_t vectors = (args->pixels + lanes - 1) / lanes;
    int64_t panels = (vectors + widest - 1) / widest;
    if (deal_panels(args, vectors, panels)) {
        panels = (panels + shares - 1) / shares * shares;
        panels = panels < vectors ? panels : vectors;
        return (deal){vectors, panels, panels * share / shares, panels * (share + 1) / shares, 0, bands};
    }
    return (deal){vectors, panels, 0, panels, bands * share / shares, bands * (share + 1) / shares};
}

static inline panel panel_of(const deal *own, int64_t pixels, int lanes, int64_t number) {
    const int64_t first = number * own->vectors / own->panels * lanes;
    const int64_t next = (number + 1) * own->vectors / own->panels * lanes;
    const int64_t count = (next < pixels ? next : pixels) - first;
    return (panel){.first = first, .vectors = (int)((count + lanes - 1) / lanes), .tail = (int)(count % lanes)};
}

/* Whether bands can pass over x where it is: in whole aligned vectors, without its rows pushing each other out of a
 * first-level cache of 64 sets and 8 ways, and so few of them, or each used by so few entries, that a copy costs more
 * than it saves. */
static inline int fit_in_place(const coppice_matmul_args *args, const void *x, size_t size, int64_t columns,
                               panel part) {
    enum { line = 64, sets = 64, ways = 8, few_columns = 64, few_uses = 12 };
    const int64_t bytes = args->x_stride * (int64_t)size;
    if (args->window || part.tail || (uintptr_t)x % line || bytes % line)
        return 0;
    const int64_t pitch = bytes / line, sets_apart = pitch & -pitch;
    if (columns * (sets_apart < sets ? sets_apart : sets) > sets * ways)
        return 0;
    return columns <= few_columns || args->weight.entries < few_uses * args->weight.cols;
}

/* y of one row of a panel from its sums. */
ALWAYS_INLINE void finish_row(const int type, const int plain, const coppice_matmul_args *args, const float *scales,
                              int64_t row, panel part, const float *sums) {
    const vector lower = broadcast(args->lower), upper = broadcast(args->upper);
    const vector scale = broadcast(scales ? scales[row] : 1.0f), bias = broadcast(args->bias ? args->bias[row] : 0.0f);
    const int64_t y = row * args->y_stride + part.first, residual = row * args->residual_stride + part.first;
    for (int v = 0; v < part.vectors; v++) {
        const int count = plain && v + 1 < part.vectors ? LANES : lanes_of(part, v);
        vector z = multiply_add(scale, load(sums + v * LANES), bias);
        if (!plain && args->residual)
            z = add(z, load_as(type, args->residual, residual + v * LANES, count));
        z = finished(plain ? COPPICE_CLAMP_ONLY : args->activation, lower, upper, z);
        store_as(type, args->y, y + v * LANES, count, z);
    }
}

ALWAYS_INLINE void finish_rows(const int type, const coppice_matmul_args *args, const float *scales, int64_t first,
                               int64_t end, panel part, const float *sums, int64_t stride) {
    const int plain = !args->residual && args->activation == COPPICE_CLAMP_ONLY;
    for (int64_t row = first; row < end; row++)
        if (plain)
            finish_row(type, 1, args, scales, row, part, sums + row * stride);
        else
            finish_row(type, 0, args, scales, row, part, sums + row * stride);
}

/* y of some bands of a panel from their sums in scratch, which begin with row 0; scales is NULL where there are none,
 * or where the sums are multiplied by them already. */
static inline void finish(const coppice_matmul_args *args, const float *scales, int64_t first_band, int64_t end_band,
                          panel part, const float *sums, int64_t stride) {
    const coppice_weight *weight = &args->weight;
    const int64_t first = first_band * weight->height, last = end_band * weight->height;
    const int64_t end = last < weight->rows ? last : weight->rows;
    EACH_TYPE(args->type, finish_rows(type, args, scales, first, end, part, sums, stride))
}

#endif
