/* The layouts for few pixels: where the entries of a row are. */
#ifndef COPPICE_LAYOUTS_H
#define COPPICE_LAYOUTS_H

#include "kernels.h"

enum {
    mask_columns = 64,
    chunk_columns = 16, /* of COPPICE_N_OF_M: what a position counts in */
    word_positions = 8, /* in a word of 32 bits */
    band_lanes = 16,
    sell_quad = 4,       /* values of a lane in an entry of COPPICE_SELL */
    sell_unit = 64,      /* what its columns are divided by */
    sell_window = 256,   /* columns that an offset reaches */
    window_rows = 64,    /* rows that lanes[] sorts among themselves */
    filled_columns = 64, /* x of few pixels is filled up to a multiple, and then by a window */
    unpacked_slab = 256, /* columns that are unpacked at a time: a multiple of all the above */
    unpacked_rows = 256,
};

static const int64_t sell_cols_max = (int64_t)1 << 22, unpacked_places = (int64_t)1 << 20;

static inline int coppice_is_packed(int32_t layout) {
    return layout == COPPICE_BITMASK || layout == COPPICE_N_OF_M || layout == COPPICE_SELL;
}

/* Words of a row's mask. */
static inline int64_t coppice_mask_words(const coppice_weight *weight) {
    return (weight->cols + mask_columns - 1) / mask_columns;
}

/* Entries of a row of COPPICE_N_OF_M, and of its part in sixteen columns. */
static inline int64_t coppice_row_entries(const coppice_weight *weight) {
    return weight->cols / weight->group * weight->kept;
}

static inline int coppice_chunk_entries(const coppice_weight *weight) {
    return weight->kept * chunk_columns / weight->group;
}

/* Words of positions of a lane. */
static inline int64_t coppice_position_words(const coppice_weight *weight) {
    return (coppice_row_entries(weight) + word_positions - 1) / word_positions;
}

/* Lanes of the bands of a row's window. */
static inline int64_t coppice_window_lanes(const coppice_weight *weight, int64_t window) {
    const int64_t left = weight->rows - window * window_rows;
    return left < window_rows ? (left + band_lanes - 1) / band_lanes * band_lanes : window_rows;
}

/* Where a row of COPPICE_SELL is, counted through all bands. */
static inline int64_t coppice_lane(const coppice_weight *weight, int64_t row) {
    return weight->lanes ? row / window_rows * window_rows + weight->lanes[row] : row;
}

/* Columns of x for few pixels, filled up. */
static inline int64_t coppice_few_width(const coppice_weight *weight) {
    return (weight->cols + filled_columns - 1) / filled_columns * filled_columns + sell_window;
}

/* Rows that are unpacked at a time. */
static inline int64_t coppice_unpacked_rows(const coppice_weight *weight) {
    const int64_t fit = weight->cols < unpacked_places ? unpacked_places / (weight->cols ? weight->cols : 1) : 1;
    const int64_t most = fit < unpacked_rows ? fit : unpacked_rows;
    return weight->rows < most ? weight->rows : most;
}

/* CSR of so many rows of a packed weight, still without its lists; its entries take the place of the weight's. */
static inline coppice_weight coppice_unpacked(const coppice_weight *weight) {
    return (coppice_weight){.layout = COPPICE_SPARSE,
                            .type = COPPICE_F32,
                            .rows = coppice_unpacked_rows(weight),
                            .cols = weight->cols,
                            .slab = unpacked_slab,
                            .height = 1};
}

/* Scratch for its lists: cursors, starts, values and columns. */
static inline int64_t coppice_unpacked_bytes(const coppice_weight *weight) {
    const int64_t rows = coppice_unpacked_rows(weight), slabs = weight->cols / unpacked_slab + 1;
    return rows * (int64_t)sizeof(int64_t) + (slabs * rows + 1) * (int64_t)sizeof(uint32_t) +
           rows * weight->cols * (int64_t)(sizeof(float) + sizeof(uint16_t)) + COPPICE_SCRATCH_ALIGNMENT;
}

/* Sizes and pointers of a packed weight, without its arrays; and its arrays. */
int32_t coppice_packed_sizes(const coppice_weight *weight);
int32_t coppice_packed_pointers(const coppice_weight *weight);
int32_t coppice_packed_validate(const coppice_weight *weight);

/* The entries of a row with columns in first .. first + unpacked_slab - 1, columns less `first` and values as fp32;
 * returns how many. Slabs come in rising order, and *cursor, zero before the first, goes from one to the next. */
int coppice_unpack(const coppice_weight *weight, int64_t row, int64_t first, int64_t *cursor, uint16_t *columns,
                   float *values);

#endif
