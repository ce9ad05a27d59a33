/* The layouts for few pixels: what may be passed, and their entries one by one. */
#include "layouts.h"

#include "arguments.h"

/* --- what may be passed --------------------------------------------------------------------------------------------
 */

static int32_t check_n_of_m(const coppice_weight *weight) {
    const int32_t group = weight->group;
    if ((group != 2 && group != 4 && group != 8 && group != 16) || weight->kept < 1 || weight->kept >= group ||
        weight->cols % group != 0)
        return COPPICE_SIZE;
    return weight->entries == coppice_bands(weight) * coppice_row_entries(weight) ? COPPICE_OK : COPPICE_STARTS;
}

int32_t coppice_packed_sizes(const coppice_weight *weight) {
    if (weight->height != (weight->layout == COPPICE_BITMASK ? 1 : band_lanes))
        return COPPICE_LAYOUT;
    if (!coppice_type_size(weight->type) || (weight->layout == COPPICE_SELL && weight->type != COPPICE_I8))
        return COPPICE_TYPE;
    if (!within(weight->rows, 0, size_max) || !within(weight->entries, 0, UINT32_MAX) ||
        !within(weight->cols, 0, weight->layout == COPPICE_SELL ? sell_cols_max : size_max))
        return COPPICE_SIZE;
    return weight->layout == COPPICE_N_OF_M ? check_n_of_m(weight) : COPPICE_OK;
}

static int32_t needed(const void *pointer, size_t size, int64_t count) {
    if (count > 0 && !pointer)
        return COPPICE_NULL;
    return misaligned(pointer, size) ? COPPICE_ALIGNMENT : COPPICE_OK;
}

static int32_t first_fault(int32_t one, int32_t other) {
    return one != COPPICE_OK ? one : other;
}

int32_t coppice_packed_pointers(const coppice_weight *weight) {
    const int32_t common = first_fault(needed(weight->values, coppice_type_size(weight->type), weight->entries),
                                       needed(weight->scales, sizeof(float), 0));
    const int32_t starts = needed(weight->starts, sizeof(uint32_t), 1);
    switch (weight->layout) {
    case COPPICE_BITMASK:
        return first_fault(first_fault(common, starts),
                           needed(weight->masks, sizeof(uint64_t), weight->rows * coppice_mask_words(weight)));
    case COPPICE_N_OF_M:
        return first_fault(common, needed(weight->positions, sizeof(uint32_t), weight->entries));
    default:
        return first_fault(first_fault(common, starts),
                           first_fault(needed(weight->columns, sizeof(uint16_t), weight->entries),
                                       needed(weight->offsets, sizeof(uint8_t), weight->entries)));
    }
}

/* --- arrays from an untrusted source -------------------------------------------------------------------------------
 */

static int32_t validate_starts(const coppice_weight *weight, int64_t lists) {
    if (weight->starts[0] != 0 || weight->starts[lists] != weight->entries)
        return COPPICE_STARTS;
    for (int64_t list = 0; list < lists; list++)
        if (weight->starts[list] > weight->starts[list + 1])
            return COPPICE_STARTS;
    return COPPICE_OK;
}

static int32_t validate_bitmask(const coppice_weight *weight) {
    const int64_t words = coppice_mask_words(weight), rest = weight->cols % mask_columns;
    const int32_t status = validate_starts(weight, weight->rows);
    if (status != COPPICE_OK)
        return status;
    for (int64_t row = 0; row < weight->rows; row++) {
        int64_t bits = 0;
        for (int64_t word = 0; word < words; word++)
            bits += __builtin_popcountll(weight->masks[row * words + word]);
        if (bits != (int64_t)weight->starts[row + 1] - weight->starts[row])
            return COPPICE_STARTS;
        if (rest && weight->masks[(row + 1) * words - 1] >> rest)
            return COPPICE_COLUMNS;
    }
    return COPPICE_OK;
}

static int position_of(const coppice_weight *weight, int64_t row, int64_t entry) {
    const int64_t word = row / band_lanes * coppice_position_words(weight) + entry / word_positions;
    return weight->positions[word * band_lanes + row % band_lanes] >> 4 * (entry % word_positions) & 15;
}

static int32_t validate_n_of_m(const coppice_weight *weight) {
    const int64_t count = coppice_row_entries(weight), rows = count ? weight->rows : 0;
    const int chunk = coppice_chunk_entries(weight);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t entry = 0; entry < count; entry++) {
            const int position = position_of(weight, row, entry);
            const int rises = entry % weight->kept == 0 || position_of(weight, row, entry - 1) < position;
            if (!rises || position / weight->group != entry % chunk / weight->kept)
                return COPPICE_COLUMNS;
        }
    return COPPICE_OK;
}

static int64_t sell_column(const coppice_weight *weight, size_t place) {
    return (int64_t)weight->columns[place / (band_lanes * sell_quad)] * sell_unit + weight->offsets[place];
}

/* One lane of a band. */
static int32_t validate_lane(const coppice_weight *weight, int64_t band, int lane) {
    const int8_t *values = weight->values;
    int64_t last = -1;
    for (size_t entry = weight->starts[band]; entry < weight->starts[band + 1]; entry++)
        for (size_t slot = 0; slot < sell_quad; slot++) {
            const size_t place = (entry * band_lanes + (size_t)lane) * sell_quad + slot;
            const int64_t column = sell_column(weight, place);
            if (values[place] == 0)
                continue;
            if (column <= last || column >= weight->cols)
                return COPPICE_COLUMNS;
            last = column;
        }
    return COPPICE_OK;
}

static int32_t validate_sell(const coppice_weight *weight) {
    const int64_t bands = coppice_bands(weight);
    int32_t status = validate_starts(weight, bands);
    for (int64_t entry = 0; entry < weight->entries && status == COPPICE_OK; entry++)
        if ((int64_t)weight->columns[entry] * sell_unit >= weight->cols)
            status = COPPICE_COLUMNS;
    for (int64_t band = 0; band < bands; band++)
        for (int lane = 0; lane < band_lanes && status == COPPICE_OK; lane++)
            status = validate_lane(weight, band, lane);
    uint64_t taken = 0;
    for (int64_t row = 0; row < weight->rows && weight->lanes && status == COPPICE_OK; row++) {
        taken = row % window_rows ? taken : 0;
        if (weight->lanes[row] >= coppice_window_lanes(weight, row / window_rows) || taken >> weight->lanes[row] & 1)
            return COPPICE_LANES;
        taken |= (uint64_t)1 << weight->lanes[row];
    }
    return status;
}

int32_t coppice_packed_validate(const coppice_weight *weight) {
    switch (weight->layout) {
    case COPPICE_BITMASK:
        return validate_bitmask(weight);
    case COPPICE_N_OF_M:
        return validate_n_of_m(weight);
    default:
        return validate_sell(weight);
    }
}

/* --- entries one by one --------------------------------------------------------------------------------------------
 */

static int unpack_bitmask(const coppice_weight *weight, int64_t row, int64_t first, int64_t *cursor, uint16_t *columns,
                          float *values) {
    const int64_t words = coppice_mask_words(weight), word = first / mask_columns;
    int count = 0;
    for (int64_t part = 0; part < unpacked_slab / mask_columns && word + part < words; part++)
        for (uint64_t mask = weight->masks[row * words + word + part]; mask; mask &= mask - 1, count++)
            columns[count] = (uint16_t)(part * mask_columns + __builtin_ctzll(mask));
    for (int entry = 0; entry < count; entry++)
        values[entry] = coppice_load(weight->type, weight->values, weight->starts[row] + *cursor + entry);
    *cursor += count;
    return count;
}

static int unpack_n_of_m(const coppice_weight *weight, int64_t row, int64_t first, uint16_t *columns, float *values) {
    const int64_t end = first + unpacked_slab < weight->cols ? first + unpacked_slab : weight->cols;
    const int64_t begin = first / weight->group * weight->kept, past = end / weight->group * weight->kept;
    const int64_t band = row / band_lanes * coppice_row_entries(weight);
    const int chunk = coppice_chunk_entries(weight);
    for (int64_t entry = begin; entry < past; entry++) {
        const int64_t column = entry / chunk * chunk_columns + position_of(weight, row, entry);
        columns[entry - begin] = (uint16_t)(column - first);
        values[entry - begin] =
            coppice_load(weight->type, weight->values, (band + entry) * band_lanes + row % band_lanes);
    }
    return (int)(past - begin);
}

static int unpack_sell(const coppice_weight *weight, int64_t row, int64_t first, int64_t *cursor, uint16_t *columns,
                       float *values) {
    const int64_t lane = coppice_lane(weight, row), band = lane / band_lanes;
    const int64_t slots = (int64_t)(weight->starts[band + 1] - weight->starts[band]) * sell_quad;
    int count = 0;
    for (; *cursor < slots; ++*cursor) {
        const size_t entry = weight->starts[band] + (size_t)(*cursor / sell_quad);
        const size_t place =
            (entry * band_lanes + (size_t)(lane % band_lanes)) * sell_quad + (size_t)(*cursor % sell_quad);
        const int8_t value = ((const int8_t *)weight->values)[place];
        if (value == 0)
            continue;
        const int64_t column = sell_column(weight, place) - first;
        if (column >= unpacked_slab)
            break;
        columns[count] = (uint16_t)column;
        values[count++] = value;
    }
    return count;
}

int coppice_unpack(const coppice_weight *weight, int64_t row, int64_t first, int64_t *cursor, uint16_t *columns,
                   float *values) {
    switch (weight->layout) {
    case COPPICE_BITMASK:
        return unpack_bitmask(weight, row, first, cursor, columns, values);
    case COPPICE_N_OF_M:
        return unpack_n_of_m(weight, row, first, columns, values);
    default:
        return unpack_sell(weight, row, first, cursor, columns, values);
    }
}
