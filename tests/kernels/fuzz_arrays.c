#include "fuzz_arrays.h"

#include <stdlib.h>
#include <string.h>

enum { lanes = 16, quad = 4, reach = 256, window = 64 };

static uint32_t byte(source *s) {
    if (s->at < s->end) {
        s->state = (s->state ^ *s->at) * 16777619u;
        return *s->at++;
    }
    s->state = s->state * 1664525u + 1013904223u;
    return s->state >> 24;
}

static uint64_t bytes(source *s, int count) {
    uint64_t all = 0;
    for (int i = 0; i < count; i++)
        all = all << 8 | byte(s);
    return all;
}

int64_t below(source *s, int64_t limit) {
    return (int64_t)(bytes(s, limit > 256 ? 3 : 1) % (uint64_t)limit);
}

/* A size that no honest file has: at a limit of a type, or anything. */
static int64_t strange(source *s) {
    static const int64_t limits[] = {-1,         0,         1,         INT32_MAX, (int64_t)1 << 31,
                                     UINT32_MAX, INT64_MAX, INT64_MIN, 65536,     65537};
    const int64_t which = below(s, 16);
    return which < 10 ? limits[which] : (int64_t)bytes(s, 8);
}

void *array(int64_t count, int64_t size) {
    return count < 0 || count > most_elements || size < 0 || size > 64 ? NULL : malloc((size_t)(count * size));
}

/* An array that ends where its memory ends, with what `from` has of it: `real` elements, then anything. */
static void *copied(source *s, const void *from, int64_t real, int64_t count, int64_t size) {
    uint8_t *to = array(count, size);
    for (int64_t i = 0; to && i < count * size; i++)
        to[i] = i < real * size ? ((const uint8_t *)from)[i] : (uint8_t)byte(s);
    return to;
}

void fill_elements(source *s, int32_t type, void *data, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const float value = (float)(int8_t)byte(s) / 32;
        if (type == COPPICE_I8)
            ((int8_t *)data)[i] = (int8_t)byte(s);
        else if (byte(s) >= 2)
            coppice_store(type, data, i, value);
        else if (type == COPPICE_F32)
            ((uint32_t *)data)[i] = (uint32_t)bytes(s, 4);
        else
            ((uint16_t *)data)[i] = (uint16_t)bytes(s, 2);
    }
}

/* --- sizes ---------------------------------------------------------------------------------------------------------
 */

static void make_sizes_strange(source *s, coppice_weight *w) {
    switch (below(s, 32)) {
    case 1:
        w->layout = (int32_t)strange(s);
        break;
    case 2:
        w->type = (int32_t)strange(s);
        break;
    case 3:
        w->rows = strange(s);
        break;
    case 4:
        w->cols = strange(s);
        break;
    case 5:
        w->slab = strange(s);
        break;
    case 6:
        w->height = strange(s);
        break;
    case 7:
        w->cols = below(s, 1 << 18); /* more than a column can say */
        break;
    case 8:
        w->rows = below(s, 3000);
        break;
    case 9:
        w->kept = (int32_t)(below(s, 2) ? strange(s) : below(s, 17));
        break;
    case 10:
        w->group = (int32_t)(below(s, 2) ? strange(s) : below(s, 33));
        break;
    case 11:
        w->cols = below(s, 1000); /* of N of M not as many as groups have */
        break;
    case 12:
        w->cols = below(s, 1 << 12) / 16 * 16;
        break;
    default:
        break;
    }
}

static coppice_weight random_sizes(source *s) {
    static const int64_t heights[] = {1, 4, 8, 16};
    coppice_weight w = {.layout = (int32_t)below(s, 5), .type = (int32_t)below(s, 4), .height = heights[below(s, 4)]};
    w.rows = below(s, 34);
    w.cols = below(s, 100);
    w.slab = below(s, 4) ? 1 + below(s, w.cols + 1) : 1 + below(s, COPPICE_SLAB_MAX);
    w.group = 2 << below(s, 4);
    w.kept = 1 + (int32_t)below(s, w.group - 1);
    if (w.layout == COPPICE_DENSE && w.height == 1)
        w.height = 4;
    if (w.layout == COPPICE_BITMASK)
        w.height = 1;
    if (w.layout == COPPICE_N_OF_M || w.layout == COPPICE_SELL)
        w.height = lanes, w.rows *= 4;
    if (w.layout == COPPICE_N_OF_M)
        w.cols -= w.cols % w.group;
    if (w.layout == COPPICE_SELL)
        w.type = COPPICE_I8, w.cols *= 8;
    make_sizes_strange(s, &w);
    return w;
}

/* Whether the sizes may be those of a weight; whoever looks at the arrays of another is wrong. */
static int are_sizes(const coppice_weight *w) {
    return w->rows >= 0 && w->rows <= INT32_MAX && w->cols >= 0 && w->cols <= INT32_MAX && w->height >= 1 &&
           w->height <= lanes;
}

/* --- arrays --------------------------------------------------------------------------------------------------------
 */

/* A few bytes of an array changed to what they should not be. */
static void damage(source *s, void *data, int64_t count, int64_t size) {
    for (int64_t changes = 1 + below(s, 3); data && count > 0 && changes > 0; changes--)
        ((uint8_t *)data)[below(s, count) * size + below(s, size)] = (uint8_t)byte(s);
}

/* Lists and their columns as they should be, and a few of both changed to what they should not. */
static void fill_lists(source *s, coppice_weight *w, blocks *held) {
    static uint16_t room[most_elements];
    const uint32_t density = byte(s);
    if (w->slab < 1 || w->slab > COPPICE_SLAB_MAX || coppice_bands(w) * w->cols > most_elements)
        return;
    const int64_t lists = coppice_bands(w) * coppice_slabs(w);
    uint32_t *starts = held->starts = array(lists + 1, sizeof *starts);
    if (!starts)
        return;
    starts[0] = 0;
    for (int64_t list = 0; list < lists; list++) {
        const int64_t width = coppice_slab_width(w, list / coppice_bands(w));
        for (int64_t column = 0; column < width; column++)
            if (byte(s) <= density)
                room[w->entries++] = (uint16_t)column;
        starts[list + 1] = (uint32_t)w->entries;
    }
    const int64_t real = w->entries, damaged = below(s, 16);
    if (damaged == 1)
        w->entries = below(s, 2) ? strange(s) : w->entries + below(s, 5) - 2;
    held->columns = copied(s, room, real, w->entries, sizeof *room);
    if (damaged == 2)
        damage(s, starts, lists + 1, sizeof *starts);
    if (damaged == 3)
        damage(s, held->columns, w->entries, sizeof *room);
}

/* A word of a mask, of which a half, a quarter or three quarters is set, or all, or nothing. */
static uint64_t random_mask(source *s, int64_t density) {
    const uint64_t one = bytes(s, 8), other = density == 1 || density == 3 ? bytes(s, 8) : 0;
    return density == 0 ? 0 : density == 1 ? one & other : density == 2 ? one : density == 3 ? one | other : UINT64_MAX;
}

static void fill_masks(source *s, coppice_weight *w, blocks *held) {
    const int64_t words = (w->cols + 63) / 64, rest = w->cols % 64, density = below(s, 5);
    uint32_t *starts = held->starts = array(w->rows + 1, sizeof *starts);
    if (!starts || words > most_elements || w->rows * words > most_elements)
        return;
    uint64_t *masks = held->masks = array(w->rows * words, sizeof *masks);
    starts[0] = 0;
    for (int64_t word = 0; word < w->rows * words; word++) {
        const int last = word % words == words - 1;
        masks[word] = w->entries < most_elements - 64 ? random_mask(s, density) : 0;
        masks[word] &= last && rest ? UINT64_MAX >> (64 - rest) : UINT64_MAX;
        w->entries += __builtin_popcountll(masks[word]);
        starts[word / words + 1] = (uint32_t)w->entries;
    }
    memset(starts, 0, (words ? 0 : (size_t)w->rows + 1) * sizeof *starts);
    switch (below(s, 32)) {
    case 1:
        w->entries = below(s, 2) ? strange(s) : w->entries + below(s, 5) - 2;
        break;
    case 2:
        damage(s, starts, w->rows + 1, sizeof *starts);
        break;
    case 3:
    case 4:
        damage(s, masks, w->rows * words, sizeof *masks);
        break;
    default:
        break;
    }
}

/* Each group of a row has its columns; what rows past the matrix have is anything. */
static void fill_positions(source *s, coppice_weight *w, blocks *held) {
    const int patterned = w->group >= 2 && w->group <= 16 && (w->group & (w->group - 1)) == 0 && w->kept >= 1 &&
                          w->kept < w->group && w->cols <= most_elements && w->rows <= most_elements;
    if (!patterned)
        return;
    const int64_t count = w->cols / w->group * w->kept, words = (count + 7) / 8, bands = coppice_bands(w);
    w->entries = bands * count;
    if (w->entries * lanes > most_elements)
        return;
    uint32_t *positions = held->positions = array(bands * words * lanes, sizeof *positions);
    for (int64_t word = 0; positions && word < bands * words * lanes; word++)
        positions[word] = (uint32_t)bytes(s, 4);
    for (int64_t row = 0; positions && row < w->rows; row++)
        for (int64_t column = 0, entry = 0, wanted = 0; column < w->cols && entry < count; column++) {
            const int64_t left = w->group - column % w->group;
            wanted = left == w->group ? w->kept : wanted;
            if (below(s, left) >= wanted)
                continue;
            uint32_t *word = &positions[(row / lanes * words + entry / 8) * lanes + row % lanes];
            const uint32_t shift = 4 * (uint32_t)(entry++ % 8);
            *word = (*word & ~((uint32_t)15 << shift)) | (uint32_t)(column % 16) << shift;
            wanted--;
        }
    switch (below(s, 32)) {
    case 1:
        w->entries = below(s, 2) ? strange(s) : w->entries + below(s, 5) - 2;
        break;
    case 2:
    case 3:
        damage(s, positions, bands * words * lanes, sizeof *positions);
        break;
    default:
        break;
    }
}

/* A random order of the rows of each window. */
static void fill_order(source *s, uint8_t *order, int64_t rows) {
    for (int64_t first = 0; order && first < rows; first += window) {
        const int64_t left = rows - first, places = left < window ? (left + lanes - 1) / lanes * lanes : window;
        uint8_t all[window];
        for (int64_t i = 0; i < places; i++)
            all[i] = (uint8_t)i;
        for (int64_t i = 0; i < places && i < left; i++) {
            const int64_t other = i + below(s, places - i);
            order[first + i] = all[other];
            all[other] = all[i];
        }
    }
}

/* One entry: lanes go on in leaps, as far as the offsets reach; elsewhere they have a zero at any offset. */
static void fill_entry(source *s, const coppice_weight *w, int64_t first, int64_t leap, int64_t *last, uint8_t *offsets,
                       int8_t *values) {
    for (int64_t slot = 0; slot < lanes * quad; slot++) {
        int64_t *end = &last[slot / quad];
        const int64_t next = (*end < first ? first : *end + 1) + below(s, leap);
        const int fits = next < first + reach && next < w->cols;
        offsets[slot] = fits ? (uint8_t)(next - first) : (uint8_t)byte(s);
        values[slot] = (int8_t)(fits ? byte(s) : 0);
        *end = fits ? next : *end;
    }
}

static void fill_sliced(source *s, coppice_weight *w, blocks *held) {
    enum { slots = lanes * quad, most = most_elements / slots };
    static uint16_t columns[most];
    static uint8_t offsets[most * slots];
    static int8_t values[most * slots];
    const int64_t bands = w->rows <= most_elements ? coppice_bands(w) : most_elements;
    const int64_t leap = 1 + below(s, 64), stride = 1 + below(s, 4);
    uint32_t *starts = held->starts = array(bands + 1, sizeof *starts);
    for (int64_t band = 0; starts && band < bands; band++) {
        int64_t last[lanes];
        memset(last, -1, sizeof last);
        starts[band] = (uint32_t)w->entries;
        for (int64_t unit = below(s, stride); unit * 64 < w->cols && w->entries < most && byte(s) > 8;
             unit += below(s, stride + 1)) {
            const int64_t entry = w->entries++;
            columns[entry] = (uint16_t)unit;
            fill_entry(s, w, unit * 64, leap, last, offsets + entry * slots, values + entry * slots);
        }
    }
    if (starts)
        starts[bands] = (uint32_t)w->entries;
    const int64_t real = w->entries, damaged = below(s, 32);
    if (damaged == 1)
        w->entries = below(s, 2) ? strange(s) : w->entries + below(s, 5) - 2;
    held->columns = copied(s, columns, real, w->entries, sizeof *columns);
    held->offsets = copied(s, offsets, real, w->entries, slots);
    held->values = copied(s, values, real, w->entries, slots);
    held->lanes = below(s, 4) ? array(w->rows, sizeof(uint8_t)) : NULL;
    fill_order(s, held->lanes, w->rows);
    if (damaged == 2)
        damage(s, starts, bands + 1, sizeof *starts);
    if (damaged == 3)
        damage(s, held->columns, w->entries, sizeof *columns);
    if (damaged == 4)
        damage(s, held->offsets, w->entries, slots);
    if (damaged == 5)
        damage(s, held->values, w->entries, slots);
    if (damaged == 6)
        damage(s, held->lanes, w->rows, 1);
}

/* --- the whole of it -----------------------------------------------------------------------------------------------
 */

static void fill_values(source *s, coppice_weight *w, blocks *held) {
    const int held_by_one = w->height > 0 && w->height <= lanes && w->entries >= 0 && w->entries <= most_elements;
    const int64_t count = held_by_one ? w->entries * w->height : -1, size = (int64_t)coppice_type_size(w->type);
    if (w->layout != COPPICE_SELL)
        held->values = array(count, size);
    if (held->values && size && w->layout != COPPICE_SELL)
        fill_elements(s, w->type, held->values, count);
    held->scales = below(s, 3) && w->type != COPPICE_I8 ? NULL : array(w->rows, sizeof(float));
    if (held->scales)
        fill_elements(s, COPPICE_F32, held->scales, w->rows);
}

/* Now and then a pointer is NULL, or one byte further than it should be, unless it is one of bytes. */
static void place(source *s, coppice_weight *w, const blocks *held) {
    const void *all[] = {held->starts, held->columns,   held->values,  held->scales,
                         held->masks,  held->positions, held->offsets, held->lanes};
    const int64_t which = below(s, 128), count = sizeof all / sizeof *all;
    if (which < count)
        all[which] = NULL;
    else if (which < 6 + count && all[which - count] && !(which == 2 + count && w->type == COPPICE_I8))
        all[which - count] = (const char *)all[which - count] + 1;
    w->starts = all[0], w->columns = all[1], w->values = all[2], w->scales = all[3];
    w->masks = all[4], w->positions = all[5], w->offsets = all[6], w->lanes = all[7];
}

/* No one may look at arrays that a layout does not have. */
static void hide_others(coppice_weight *w) {
    const void *nothing = (const void *)(uintptr_t)1;
    const int bitmask = w->layout == COPPICE_BITMASK, sliced = w->layout == COPPICE_SELL;
    if (bitmask || w->layout == COPPICE_N_OF_M)
        w->columns = nothing;
    if (w->layout == COPPICE_N_OF_M)
        w->starts = nothing;
    if (!bitmask)
        w->masks = nothing;
    if (w->layout != COPPICE_N_OF_M)
        w->positions = nothing;
    if (!sliced)
        w->offsets = nothing, w->lanes = nothing;
}

coppice_weight random_weight(source *s, blocks *held) {
    coppice_weight w = random_sizes(s);
    *held = (blocks){0};
    if (are_sizes(&w))
        switch (w.layout) {
        case COPPICE_DENSE:
            w.entries = below(s, 16) ? coppice_bands(&w) * w.cols : strange(s);
            break;
        case COPPICE_BITMASK:
            fill_masks(s, &w, held);
            break;
        case COPPICE_N_OF_M:
            fill_positions(s, &w, held);
            break;
        case COPPICE_SELL:
            fill_sliced(s, &w, held);
            break;
        default:
            fill_lists(s, &w, held);
            break;
        }
    fill_values(s, &w, held);
    place(s, &w, held);
    hide_others(&w);
    return w;
}

void free_blocks(const blocks *held) {
    free(held->starts), free(held->columns), free(held->values), free(held->scales);
    free(held->masks), free(held->positions), free(held->offsets), free(held->lanes);
}
