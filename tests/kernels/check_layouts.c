/* The check of the layouts for few pixels: weights made of lists, each in a way of its own, and what must be refused.
 */
#include "check.h"

enum { lanes = 16, quad = 4, unit = 64, reach = 256, sorted = 64 };

/* --- weights made of lists -----------------------------------------------------------------------------------------
 */

/* CSR in one slab. Of N of M each group has its columns; elsewhere each place has an entry with probability density. */
static coppice_weight random_lists(const coppice_weight *w, double density) {
    coppice_weight lists = {
        .layout = COPPICE_SPARSE, .type = w->type, .rows = w->rows, .cols = w->cols, .slab = 65536, .height = 1};
    uint32_t *starts = allocate((size_t)(w->rows + 1) * sizeof *starts);
    uint16_t *columns = allocate((size_t)(w->rows * w->cols) * sizeof *columns);
    starts[0] = 0;
    for (int64_t row = 0; row < w->rows; row++) {
        int64_t wanted = 0;
        for (int64_t column = 0; column < w->cols; column++) {
            const int patterned = w->layout == COPPICE_N_OF_M;
            if (patterned && column % w->group == 0)
                wanted = w->kept;
            const int takes = patterned ? random_below(w->group - column % w->group) < wanted
                                        : random_bits() < density * 4294967296.0;
            wanted -= takes;
            if (takes)
                columns[lists.entries++] = (uint16_t)column;
        }
        starts[row + 1] = (uint32_t)lists.entries;
    }
    lists.values = random_elements(w->type, lists.entries, 0);
    int8_t *bytes = (int8_t *)(uintptr_t)lists.values;
    for (int64_t entry = 0; w->layout == COPPICE_SELL && entry < lists.entries; entry++)
        bytes[entry] = bytes[entry] ? bytes[entry] : 1; /* a zero there is no entry */
    if (w->type == COPPICE_I8 || random_below(4) == 0) {
        float *scales = allocate((size_t)w->rows * sizeof *scales);
        for (int64_t row = 0; row < w->rows; row++)
            scales[row] = (float)(1 + random_below(8)) / 1024;
        lists.scales = scales;
    }
    lists.starts = starts, lists.columns = columns;
    return lists;
}

/* Elements of a type, copied one by one. */
static void copy_element(int32_t type, void *to, int64_t at, const void *from, int64_t index) {
    const size_t size = size_of(type);
    memcpy((char *)to + (size_t)at * size, (const char *)from + (size_t)index * size, size);
}

static void *copied(const void *from, size_t bytes) {
    void *to = allocate(bytes);
    memcpy(to, from, bytes);
    return to;
}

static void fill_bitmask(coppice_weight *w, const coppice_weight *lists) {
    const int64_t words = ceiling(w->cols, 64);
    uint64_t *masks = allocate((size_t)(w->rows * words) * sizeof *masks);
    memset(masks, 0, (size_t)(w->rows * words) * sizeof *masks);
    for (int64_t row = 0; row < w->rows; row++)
        for (uint32_t entry = lists->starts[row]; entry < lists->starts[row + 1]; entry++)
            masks[row * words + lists->columns[entry] / 64] |= (uint64_t)1 << lists->columns[entry] % 64;
    w->entries = lists->entries;
    w->masks = masks;
    w->starts = copied(lists->starts, (size_t)(w->rows + 1) * sizeof *w->starts);
    w->values = copied(lists->values, (size_t)w->entries * size_of(w->type));
}

/* What rows past the matrix hold must not matter. */
static void fill_n_of_m(coppice_weight *w, const coppice_weight *lists) {
    const int64_t bands = ceiling(w->rows, lanes), count = w->cols / w->group * w->kept, words = ceiling(count, 8);
    uint32_t *positions = allocate((size_t)(bands * words * lanes) * sizeof *positions);
    for (int64_t i = 0; i < bands * words * lanes; i++)
        positions[i] = random_bits();
    w->entries = bands * count;
    char *values = random_elements(w->type, w->entries * lanes, 0);
    for (int64_t row = 0; row < w->rows; row++)
        for (int64_t i = 0; i < count; i++) {
            const uint32_t entry = lists->starts[row] + (uint32_t)i;
            uint32_t *word = &positions[(row / lanes * words + i / 8) * lanes + row % lanes];
            const uint32_t shift = 4 * (uint32_t)(i % 8);
            *word = (*word & ~((uint32_t)15 << shift)) | (uint32_t)(lists->columns[entry] % 16) << shift;
            copy_element(w->type, values, (row / lanes * count + i) * lanes + row % lanes, lists->values, entry);
        }
    w->positions = positions, w->values = values;
}

/* A random order of the rows of each window. */
static uint8_t *random_lanes(int64_t rows) {
    uint8_t *order = allocate((size_t)rows);
    for (int64_t first = 0; first < rows; first += sorted) {
        const int64_t left = rows - first, places = left < sorted ? ceiling(left, lanes) * lanes : sorted;
        uint8_t all[sorted];
        for (int64_t i = 0; i < places; i++)
            all[i] = (uint8_t)i;
        for (int64_t i = 0; i < places && i < left; i++) {
            const int64_t other = i + random_below(places - i);
            order[first + i] = all[other];
            all[other] = all[i];
        }
    }
    return order;
}

/* The entries of one band: each lane takes as many values as reach from the first one that is still to be stored, or
 * fewer; what is left over is zero at any offset. */
static int64_t fill_band(const coppice_weight *lists, const int64_t *rows, int64_t entry, uint16_t *columns,
                         uint8_t *offsets, int8_t *values) {
    const int8_t *from = lists->values;
    uint32_t at[lanes], end[lanes];
    for (int lane = 0; lane < lanes; lane++) {
        at[lane] = rows[lane] < lists->rows ? lists->starts[rows[lane]] : 0;
        end[lane] = rows[lane] < lists->rows ? lists->starts[rows[lane] + 1] : 0;
    }
    for (;; entry++) {
        int64_t first = -1;
        for (int lane = 0; lane < lanes; lane++)
            if (at[lane] < end[lane] && (first < 0 || lists->columns[at[lane]] < first))
                first = lists->columns[at[lane]];
        if (first < 0)
            return entry;
        columns[entry] = (uint16_t)(first / unit);
        for (int64_t slot = 0; slot < lanes * quad; slot++) {
            const int lane = (int)(slot / quad);
            const int64_t place = entry * lanes * quad + slot;
            const int64_t offset = at[lane] < end[lane] ? lists->columns[at[lane]] - first / unit * unit : reach;
            const int takes = offset < reach && (slot % quad == 0 || random_below(8));
            offsets[place] = (uint8_t)(takes ? offset : random_below(reach));
            values[place] = (int8_t)(takes ? from[at[lane]++] : 0);
        }
    }
}

static void fill_sell(coppice_weight *w, const coppice_weight *lists) {
    const int64_t bands = ceiling(w->rows, lanes), most = lists->entries;
    uint32_t *starts = allocate((size_t)(bands + 1) * sizeof *starts);
    uint16_t *columns = allocate((size_t)most * sizeof *columns);
    uint8_t *offsets = allocate((size_t)(most * lanes * quad));
    int8_t *values = allocate((size_t)(most * lanes * quad));
    w->lanes = random_below(4) ? random_lanes(w->rows) : NULL;
    starts[0] = 0;
    for (int64_t band = 0; band < bands; band++) {
        int64_t rows[lanes];
        for (int lane = 0; lane < lanes; lane++)
            rows[lane] = w->rows;
        for (int64_t row = band * lanes / sorted * sorted; row < w->rows && row < (band * lanes / sorted + 1) * sorted;
             row++) {
            const int64_t lane = w->lanes ? row / sorted * sorted + w->lanes[row] : row;
            if (lane / lanes == band)
                rows[lane % lanes] = row;
        }
        starts[band + 1] = (uint32_t)fill_band(lists, rows, starts[band], columns, offsets, values);
    }
    w->entries = starts[bands];
    w->starts = starts;
    w->columns = copied(columns, (size_t)w->entries * sizeof *columns); /* they end where their memory ends */
    w->offsets = copied(offsets, (size_t)(w->entries * lanes * quad));
    w->values = copied(values, (size_t)(w->entries * lanes * quad));
    free(columns), free(offsets), free(values);
}

coppice_weight random_packed(coppice_weight w, double density, coppice_weight *lists) {
    w.height = w.layout == COPPICE_BITMASK ? 1 : lanes;
    *lists = random_lists(&w, density);
    if (w.layout == COPPICE_BITMASK)
        fill_bitmask(&w, lists);
    else if (w.layout == COPPICE_N_OF_M)
        fill_n_of_m(&w, lists);
    else
        fill_sell(&w, lists);
    w.scales = lists->scales;
    expect_status(coppice_weight_validate(&w), COPPICE_OK, "a weight for few pixels");
    return w;
}

void free_packed(coppice_weight *w) {
    free((void *)(uintptr_t)w->starts), free((void *)(uintptr_t)w->columns), free((void *)(uintptr_t)w->values);
    free((void *)(uintptr_t)w->masks), free((void *)(uintptr_t)w->positions), free((void *)(uintptr_t)w->offsets);
    free((void *)(uintptr_t)w->lanes);
}

/* --- what must be refused ------------------------------------------------------------------------------------------
 */

#define REFUSED(expected, change)                                                                                      \
    do {                                                                                                               \
        coppice_weight bad = good;                                                                                     \
        change;                                                                                                        \
        expect_status(coppice_weight_validate(&bad), expected, #change);                                               \
    } while (0)

static void check_bitmasks(void) {
    const uint32_t starts[] = {0, 2, 3}, falling[] = {0, 4, 3}, late[] = {1, 2, 3}, other[] = {0, 1, 3};
    const uint32_t none[] = {0, 0, 0};
    const uint64_t masks[] = {5, 0, 0, 8}, past[] = {5, 0, 0, 64};
    const float values[] = {1, 2, 3};
    const coppice_weight good = {.layout = COPPICE_BITMASK,
                                 .type = COPPICE_F32,
                                 .rows = 2,
                                 .cols = 70,
                                 .height = 1,
                                 .entries = 3,
                                 .starts = starts,
                                 .values = values,
                                 .masks = masks};
    REFUSED(COPPICE_OK, bad.slab = 0);
    REFUSED(COPPICE_LAYOUT, bad.layout = 5);
    REFUSED(COPPICE_LAYOUT, bad.height = 16);
    REFUSED(COPPICE_TYPE, bad.type = 4);
    REFUSED(COPPICE_SIZE, bad.rows = -1);
    REFUSED(COPPICE_SIZE, bad.cols = (int64_t)1 << 31);
    REFUSED(COPPICE_SIZE, bad.entries = (int64_t)1 << 32);
    REFUSED(COPPICE_NULL, bad.masks = NULL);
    REFUSED(COPPICE_NULL, bad.starts = NULL);
    REFUSED(COPPICE_NULL, bad.values = NULL);
    REFUSED(COPPICE_ALIGNMENT, bad.masks = (const uint64_t *)(const void *)((const char *)masks + 4));
    REFUSED(COPPICE_ALIGNMENT, bad.values = (const char *)values + 2);
    REFUSED(COPPICE_STARTS, bad.starts = falling);
    REFUSED(COPPICE_STARTS, bad.starts = late);
    REFUSED(COPPICE_STARTS, bad.starts = other);
    REFUSED(COPPICE_STARTS, bad.entries = 4);
    REFUSED(COPPICE_COLUMNS, bad.masks = past);
    REFUSED(COPPICE_OK, (bad.cols = bad.entries = 0, bad.starts = none, bad.masks = NULL, bad.values = NULL));
}

static void check_patterns(void) {
    const uint32_t positions[lanes] = {0x7531, 0x6420}, same[lanes] = {0x7531, 0x6422};
    const uint32_t falling[lanes] = {0x7513, 0x6420}, outside[lanes] = {0x7541, 0x6420};
    const uint32_t past[lanes] = {0x7531, 0xe420};
    const int8_t values[4 * lanes] = {1};
    const coppice_weight good = {.layout = COPPICE_N_OF_M,
                                 .type = COPPICE_I8,
                                 .rows = 2,
                                 .cols = 8,
                                 .height = 16,
                                 .entries = 4,
                                 .values = values,
                                 .kept = 2,
                                 .group = 4,
                                 .positions = positions};
    REFUSED(COPPICE_OK, bad.slab = 0);
    REFUSED(COPPICE_LAYOUT, bad.height = 1);
    REFUSED(COPPICE_SIZE, bad.group = 0);
    REFUSED(COPPICE_SIZE, bad.group = 3);
    REFUSED(COPPICE_SIZE, bad.group = 32);
    REFUSED(COPPICE_SIZE, bad.kept = 0);
    REFUSED(COPPICE_SIZE, bad.kept = 4);
    REFUSED(COPPICE_SIZE, bad.cols = 7);
    REFUSED(COPPICE_STARTS, bad.entries = 3);
    REFUSED(COPPICE_STARTS, bad.rows = 17);
    REFUSED(COPPICE_NULL, bad.positions = NULL);
    REFUSED(COPPICE_NULL, bad.values = NULL);
    REFUSED(COPPICE_ALIGNMENT, bad.positions = (const uint32_t *)(const void *)((const char *)positions + 1));
    REFUSED(COPPICE_COLUMNS, bad.positions = same);
    REFUSED(COPPICE_COLUMNS, bad.positions = falling);
    REFUSED(COPPICE_COLUMNS, bad.positions = outside);
    REFUSED(COPPICE_COLUMNS, bad.positions = past);
    REFUSED(COPPICE_OK, (bad.positions = outside, bad.rows = 0, bad.entries = 0));
    REFUSED(COPPICE_OK, (bad.rows = INT32_MAX, bad.cols = bad.entries = 0, bad.positions = NULL, bad.values = NULL));
}

static void check_sliced(void) {
    enum { count = 2 * lanes * quad };
    const uint32_t starts[] = {0, 2, 3}, falling[] = {0, 3}, late[] = {1, 2};
    const uint16_t columns[] = {0, 1}, past[] = {0, 2}, back[] = {1, 0};
    uint8_t offsets[count] = {3, 9, 250}, same[count] = {3, 3, 250}, outside[count] = {3, 9, 250};
    int8_t values[count] = {1, 2, 0};
    values[lanes * quad] = 5, offsets[lanes * quad] = same[lanes * quad] = 0;
    outside[lanes * quad] = 36;
    const uint8_t order[] = {1, 0, 15}, twice[] = {1, 2, 1}, none[] = {1, 0, 16};
    const coppice_weight good = {.layout = COPPICE_SELL,
                                 .type = COPPICE_I8,
                                 .rows = 3,
                                 .cols = 100,
                                 .height = 16,
                                 .entries = 2,
                                 .starts = starts,
                                 .columns = columns,
                                 .values = values,
                                 .offsets = offsets,
                                 .lanes = order};
    REFUSED(COPPICE_OK, bad.lanes = NULL);
    REFUSED(COPPICE_LAYOUT, bad.height = 4);
    REFUSED(COPPICE_TYPE, bad.type = COPPICE_F16);
    REFUSED(COPPICE_SIZE, bad.cols = ((int64_t)1 << 22) + 1);
    REFUSED(COPPICE_NULL, bad.starts = NULL);
    REFUSED(COPPICE_NULL, bad.columns = NULL);
    REFUSED(COPPICE_NULL, bad.offsets = NULL);
    REFUSED(COPPICE_NULL, bad.values = NULL);
    REFUSED(COPPICE_STARTS, bad.starts = falling);
    REFUSED(COPPICE_STARTS, bad.starts = late);
    REFUSED(COPPICE_STARTS, bad.rows = 17);
    REFUSED(COPPICE_COLUMNS, bad.columns = past);
    REFUSED(COPPICE_COLUMNS, bad.columns = back);
    REFUSED(COPPICE_COLUMNS, bad.offsets = same);
    REFUSED(COPPICE_COLUMNS, bad.offsets = outside);
    REFUSED(COPPICE_LANES, bad.lanes = twice);
    REFUSED(COPPICE_LANES, bad.lanes = none);
}

void check_layouts(void) {
    check_bitmasks();
    check_patterns();
    check_sliced();
}
