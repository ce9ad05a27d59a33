/* The tile registers of AMX: eight of sixteen rows of 64 bytes each (Intel SDM volume 1, chapter 18).
 *
 * Tiles are named by a literal 0 .. 7. TILE_DOT_BF16 and TILE_DOT_BYTES add to a tile of sums [16][16] the products of
 * a tile of weights [16][groups] and one of x [groups][16], a group being two bf16, or four bytes, of which those of x
 * are unsigned. With COPPICE_EMULATE tiles are memory of the thread and the instructions loops over it: for the check
 * program, on machines that lack them. */
#ifndef COPPICE_X86_AMX_H
#define COPPICE_X86_AMX_H

#include <stdint.h>
#include <string.h>

enum { tile_side = 16, tile_row = 64, tile_bytes = tile_side * tile_row };

#if COPPICE_EMULATE

static _Thread_local unsigned char tile_memory[8][tile_side][tile_row];

static void tile_load(int tile, const char *from, int64_t pitch) {
    for (int64_t row = 0; row < tile_side; row++)
        memcpy(tile_memory[tile][row], from + row * pitch, tile_row);
}

static void tile_store(int tile, char *to, int64_t pitch) {
    for (int64_t row = 0; row < tile_side; row++)
        memcpy(to + row * pitch, tile_memory[tile][row], tile_row);
}

/* A group of a row of a tile, as the four bytes that it is. */
static void tile_group(int tile, int row, int group, void *to) {
    memcpy(to, tile_memory[tile][row] + 4 * group, 4);
}

static float tile_bf16(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline void tile_dot_bf16(int sums, int weight, int x) {
    for (int row = 0; row < tile_side; row++)
        for (int column = 0; column < tile_side; column++) {
            float sum;
            tile_group(sums, row, column, &sum);
            for (int group = 0; group < tile_side; group++) {
                uint16_t a[2], b[2];
                tile_group(weight, row, group, a);
                tile_group(x, group, column, b);
                sum += tile_bf16(a[0]) * tile_bf16(b[0]);
                sum += tile_bf16(a[1]) * tile_bf16(b[1]);
            }
            memcpy(tile_memory[sums][row] + 4 * column, &sum, 4);
        }
}

static inline void tile_dot_bytes(int sums, int weight, int x) {
    for (int row = 0; row < tile_side; row++)
        for (int column = 0; column < tile_side; column++) {
            uint32_t sum;
            tile_group(sums, row, column, &sum);
            for (int group = 0; group < tile_side; group++) {
                int8_t a[4];
                uint8_t b[4];
                tile_group(weight, row, group, a);
                tile_group(x, group, column, b);
                for (int i = 0; i < 4; i++)
                    sum += (uint32_t)(a[i] * b[i]); /* wraps around */
            }
            memcpy(tile_memory[sums][row] + 4 * column, &sum, 4);
        }
}

#define TILE_ZERO(tile)                 memset(tile_memory[tile], 0, tile_bytes)
#define TILE_LOAD(tile, from, pitch)    tile_load(tile, from, pitch)
#define TILE_STORE(tile, to, pitch)     tile_store(tile, to, pitch)
#define TILE_DOT_BF16(sums, weight, x)  tile_dot_bf16(sums, weight, x)
#define TILE_DOT_BYTES(sums, weight, x) tile_dot_bytes(sums, weight, x)

static inline void tiles_begin(void) {}

static inline void tiles_end(void) {}

#else

/* Written out, so that a compiler need not know them, and so that it knows that they read and write memory. */
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile::)
#define TILE_LOAD(tile, from, pitch)                                                                                   \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile::"r"(from), "r"((int64_t)(pitch)) : "memory")
#define TILE_STORE(tile, to, pitch)                                                                                    \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(pitch)) : "memory")
#define TILE_DOT_BF16(sums, weight, x)  __asm__ volatile("tdpbf16ps %%tmm" #x ", %%tmm" #weight ", %%tmm" #sums::)
#define TILE_DOT_BYTES(sums, weight, x) __asm__ volatile("tdpbsud %%tmm" #x ", %%tmm" #weight ", %%tmm" #sums::)

/* All tiles whole. */
static inline void tiles_begin(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++)
        config.row_bytes[tile] = tile_row, config.rows[tile] = tile_side;
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

/* What a task switch need not save. */
static inline void tiles_end(void) {
    __asm__ volatile("tilerelease" ::);
}

#endif

#endif
