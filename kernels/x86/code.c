/* Writes the straight-line code that code.h describes: an assembler for the nine instructions it takes. */
#include "code.h"

#include <string.h>

/* Code is written where `at` is not NULL, and counted either way. */
typedef struct writer {
    uint8_t *at;
    int64_t count;
} writer;

static void put(writer *w, uint64_t bytes, int count) {
    for (int i = 0; i < count; i++, w->count++)
        if (w->at)
            w->at[w->count] = (uint8_t)(bytes >> (8 * i));
}

/* General registers by their numbers in an instruction: the first four are the arguments (System V), the others free.
 */
enum base { X = 7, VALUES = 6, Y = 2, CALL = 1, RAX = 0, R8 = 8, R9 = 9 };

enum map { MAP_0F = 1, MAP_0F38 = 2 };
enum prefix { NO_PREFIX = 0, PREFIX_66 = 1 };

/* Intel SDM volume 2, 2.7: EVEX, 512 bits wide, no mask. Extended register numbers go in inverted. */
static void evex(writer *w, enum map map, enum prefix prefix, int opcode, int broadcast, int reg, int second, int rm,
                 int x) {
    const int p0 = (reg & 8 ? 0 : 0x80) | (x ? 0 : 0x40) | (rm & 8 ? 0 : 0x20) | (reg & 16 ? 0 : 0x10) | (int)map;
    const int p1 = (~second & 15) << 3 | 4 | (int)prefix;
    const int p2 = 0x40 | (broadcast ? 0x10 : 0) | (second & 16 ? 0 : 8);
    put(w, 0x62, 1);
    put(w, (uint64_t)p0, 1);
    put(w, (uint64_t)p1, 1);
    put(w, (uint64_t)p2, 1);
    put(w, (uint64_t)opcode, 1);
}

/* Between registers: reg = second op rm. */
static void between(writer *w, enum map map, enum prefix prefix, int opcode, int reg, int second, int rm) {
    evex(w, map, prefix, opcode, 0, reg, second, rm, rm & 16);
    put(w, (uint64_t)(0xc0 | (reg & 7) << 3 | (rm & 7)), 1);
}

/* With memory at base + offset bytes: one byte of displacement where it is a small multiple of what is accessed. */
static void memory(writer *w, enum map map, enum prefix prefix, int opcode, int width, int reg, int second,
                   enum base base, int64_t offset) {
    const int64_t units = offset / width;
    const int small = offset % width == 0 && units >= -128 && units < 128;
    evex(w, map, prefix, opcode, width == 4 && opcode != 0x18, reg, second, (int)base, 0);
    put(w, (uint64_t)((small ? 0x40 : 0x80) | (reg & 7) << 3 | ((int)base & 7)), 1);
    put(w, (uint64_t)(small ? units : offset), small ? 1 : 4);
}

static void load(writer *w, int reg, enum base base, int64_t offset) {
    memory(w, MAP_0F, NO_PREFIX, 0x10, 64, reg, 0, base, offset);
}

static void store(writer *w, int reg, enum base base, int64_t offset) {
    memory(w, MAP_0F, NO_PREFIX, 0x11, 64, reg, 0, base, offset);
}

static void broadcast(writer *w, int reg, enum base base, int64_t offset) {
    memory(w, MAP_0F38, PREFIX_66, 0x18, 4, reg, 0, base, offset);
}

static void add_memory(writer *w, int reg, enum base base, int64_t offset) {
    memory(w, MAP_0F, NO_PREFIX, 0x58, 64, reg, reg, base, offset);
}

static void multiply_add(writer *w, int sum, int x, enum base base, int64_t offset) {
    memory(w, MAP_0F38, PREFIX_66, 0xb8, 4, sum, x, base, offset);
}

/* Both give rm where one is NaN. */
static void maximum(writer *w, int reg, int second, int rm) {
    between(w, MAP_0F, NO_PREFIX, 0x5f, reg, second, rm);
}

static void minimum(writer *w, int reg, int second, int rm) {
    between(w, MAP_0F, NO_PREFIX, 0x5d, reg, second, rm);
}

/* to = [CALL + offset], 64 bits. */
static void load_pointer(writer *w, enum base to, size_t offset) {
    put(w, to & 8 ? 0x4c : 0x48, 1);
    put(w, 0x8b, 1);
    put(w, (uint64_t)(0x40 | (to & 7) << 3 | CALL), 1);
    put(w, (uint64_t)offset, 1);
}

/* base += count, a constant. */
static void advance(writer *w, enum base base, int64_t count) {
    put(w, base & 8 ? 0x49 : 0x48, 1);
    put(w, 0x81, 1);
    put(w, (uint64_t)(0xc0 | (base & 7)), 1);
    put(w, (uint64_t)count, 4);
}

/* base += by, both registers. */
static void advance_by(writer *w, enum base base, enum base by) {
    put(w, (uint64_t)(0x48 | (by & 8 ? 4 : 0) | (base & 8 ? 1 : 0)), 1);
    put(w, 0x01, 1);
    put(w, (uint64_t)(0xc0 | (by & 7) << 3 | (base & 7)), 1);
}

/* Jumps where no bit of the mask is set in call->flags; returns where the distance belongs. */
static int64_t jump_unless(writer *w, int mask) {
    put(w, 0xf6, 1); /* test byte [CALL + flags], mask */
    put(w, 0x40 | CALL, 1);
    put(w, offsetof(code_call, flags), 1);
    put(w, (uint64_t)mask, 1);
    put(w, 0x840f, 2); /* je */
    put(w, 0, 4);
    return w->count;
}

static int64_t jump(writer *w) {
    put(w, 0xe9, 1);
    put(w, 0, 4);
    return w->count;
}

static void land(writer *w, int64_t jumped) {
    writer there = {w->at, jumped - 4};
    put(&there, (uint64_t)(w->count - jumped), 4);
}

/* The registers that columns of x go through in turn, and that hold the bounds at the end. */
enum { first_x = CODE_ROWS, x_registers = 4, lower = 30, upper = 31 };

/* sums = bias, or bias + residual, or what y holds. */
static void write_beginning(writer *w, int rows) {
    const int64_t resting = jump_unless(w, CODE_FIRST);
    load_pointer(w, RAX, offsetof(code_call, bias));
    for (int row = 0; row < rows; row++)
        broadcast(w, row, RAX, row * (int)sizeof(float));
    const int64_t alone = jump_unless(w, CODE_RESIDUAL);
    load_pointer(w, R8, offsetof(code_call, residual));
    load_pointer(w, R9, offsetof(code_call, residual_stride));
    for (int row = 0; row < rows; row++) {
        add_memory(w, row, R8, 0);
        advance_by(w, R8, R9);
    }
    const int64_t begun = jump(w);
    land(w, resting);
    load_pointer(w, R9, offsetof(code_call, y_stride));
    put(w, 0xd08949, 3); /* R8 = Y */
    for (int row = 0; row < rows; row++) {
        load(w, row, R8, 0);
        advance_by(w, R8, R9);
    }
    land(w, alone);
    land(w, begun);
}

/* y = sums, clamped where that is wanted. */
static void write_end(writer *w, int rows) {
    const int64_t loose = jump_unless(w, CODE_CLAMP);
    broadcast(w, lower, CALL, offsetof(code_call, lower));
    broadcast(w, upper, CALL, offsetof(code_call, upper));
    for (int row = 0; row < rows; row++) {
        maximum(w, row, lower, row);
        minimum(w, row, upper, row);
    }
    land(w, loose);
    load_pointer(w, R9, offsetof(code_call, y_stride));
    for (int row = 0; row < rows; row++) {
        store(w, row, Y, 0);
        advance_by(w, Y, R9);
    }
    put(w, 0x77f8c5, 3); /* vzeroupper */
    put(w, 0xc3, 1);     /* ret */
}

/* A pointer that moves along, so that one byte of displacement is enough: `at` bytes from where it started. */
typedef struct cursor {
    enum base base;
    int width;
    int64_t at;
} cursor;

static int64_t reach(writer *w, cursor *c, int64_t offset) {
    const int64_t far = 128 * (int64_t)c->width;
    if (offset - c->at >= far) {
        advance(w, c->base, offset + far - c->at);
        c->at = offset + far;
    }
    return offset - c->at;
}

/* The entries of some rows in one slab, column by column; their values go to `values`. */
static void write_entries(writer *w, float *values, const coppice_weight *weight, int64_t slab, int64_t first_row,
                          int rows) {
    uint32_t next[CODE_ROWS], end[CODE_ROWS];
    const uint32_t *starts = weight->starts + slab * weight->rows + first_row;
    for (int row = 0; row < rows; row++)
        next[row] = starts[row], end[row] = starts[row + 1];
    const int64_t width = coppice_slab_width(weight, slab);
    cursor x = {X, 64, 0}, value = {VALUES, 4, 0};
    int64_t written = 0, used = 0;
    for (int64_t column = 0; column < width; column++) {
        int loaded = -1;
        for (int row = 0; row < rows; row++) {
            if (next[row] == end[row] || weight->columns[next[row]] != column)
                continue;
            if (loaded < 0) {
                loaded = first_x + (int)(used++ % x_registers);
                load(w, loaded, X, reach(w, &x, column * 64));
            }
            multiply_add(w, row, loaded, VALUES, reach(w, &value, written * 4));
            if (values) {
                const float scale = weight->scales ? weight->scales[first_row + row] : 1.0f;
                values[written] = scale * coppice_load(weight->type, weight->values, next[row]);
            }
            next[row]++;
            written++;
        }
    }
}

static int64_t align(int64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

/* Header, values and code into `block`, if it is not NULL; returns their bytes. */
static int64_t write_all(const coppice_weight *weight, uint8_t *block) {
    const int64_t slabs = coppice_slabs(weight), chunks = code_chunks(weight->rows);
    code_header *header = (code_header *)(void *)block;
    int64_t values = align((int64_t)sizeof *header + slabs * chunks * (int64_t)sizeof(code_chunk));
    int64_t code = align(values + weight->entries * (int64_t)sizeof(float));
    for (int64_t number = 0; number < slabs * chunks; number++) {
        const int64_t slab = number / chunks, first = code_first_row(weight->rows, number % chunks);
        const int rows = (int)(code_first_row(weight->rows, number % chunks + 1) - first);
        const uint32_t *starts = weight->starts + slab * weight->rows + first;
        writer w = {block ? block + code : NULL, 0};
        write_beginning(&w, rows);
        write_entries(&w, block ? (float *)(void *)(block + values) : NULL, weight, slab, first, rows);
        write_end(&w, rows);
        if (block)
            header->chunk[number] = (code_chunk){code, values};
        values += (int64_t)(starts[rows] - starts[0]) * (int64_t)sizeof(float);
        code = align(code + w.count);
    }
    return code;
}

/* Values of the whole weight, code of every entry, and what begins and ends a chunk, must have addresses. */
static int32_t check(const coppice_weight *weight) {
    const int32_t status = coppice_weight_validate(weight);
    if (status != COPPICE_OK)
        return status;
    if (weight->layout != COPPICE_SPARSE || weight->height != 1)
        return COPPICE_LAYOUT;
    return weight->entries > INT32_MAX / 64 || weight->rows > INT32_MAX / 64 ? COPPICE_SIZE : COPPICE_OK;
}

int64_t coppice_code_bytes(const coppice_weight *weight) {
    const int32_t status = check(weight);
    return status == COPPICE_OK ? write_all(weight, NULL) : status;
}

int32_t coppice_code_write(const coppice_weight *weight, void *memory, int64_t bytes) {
    const int64_t needed = coppice_code_bytes(weight);
    if (needed < 0)
        return (int32_t)needed;
    if (!memory)
        return COPPICE_NULL;
    if ((uintptr_t)memory % 64 != 0)
        return COPPICE_ALIGNMENT;
    if (bytes < needed)
        return COPPICE_SCRATCH;
    memset(memory, 0, (size_t)needed);
    const code_header header = {CODE_MAGIC, needed, weight->rows, weight->cols, weight->slab, weight->entries};
    memcpy(memory, &header, sizeof header);
    write_all(weight, memory);
    return COPPICE_OK;
}
