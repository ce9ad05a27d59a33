/* Straight-line AVX-512 code of a sparse weight: what code.c writes and matmul_avx512.c runs.
 *
 * The rows are cut into chunks of at most CODE_ROWS. A function computes one chunk over one slab for one tile of
 * sixteen pixels: every row of the chunk has its sums in a register, each column of x that the chunk uses is loaded
 * once, and each entry is one multiply-add with its value as a broadcast memory operand. Nothing is looked up and
 * nothing branched on between beginning and end. */
#ifndef COPPICE_X86_CODE_H
#define COPPICE_X86_CODE_H

#include "../kernels.h"

/* Four of the thirty-two registers hold columns of x, later the bounds. */
#define CODE_ROWS 28

enum code_flags { CODE_FIRST = 1, CODE_RESIDUAL = 2, CODE_CLAMP = 4 };

/* What a function is told besides its pointers. Strides are in bytes. */
typedef struct code_call {
    int64_t y_stride, residual_stride;
    const float *bias, *residual; /* of the chunk's first row */
    float lower, upper;
    int32_t flags;
} code_call;

/* x: the slab's columns of one tile, sixteen floats each; y: the tile of the chunk's first row, whole. */
typedef void code_function(const float *x, const float *values, float *y, const code_call *call);

/* One function. Offsets are in bytes from the header. */
typedef struct code_chunk {
    int64_t code, values;
} code_chunk;

/* Chunks stand slab by slab, as many in each, and share the rows evenly. A block that does not begin with the same
 * facts as the weight is not its code. */
typedef struct code_header {
    uint64_t magic;
    int64_t bytes, rows, cols, slab, entries;
    code_chunk chunk[];
} code_header;

#define CODE_MAGIC UINT64_C(0x31636f6470706f63)

static inline int64_t code_chunks(int64_t rows) {
    return (rows + CODE_ROWS - 1) / CODE_ROWS;
}

static inline int64_t code_first_row(int64_t rows, int64_t chunk) {
    return chunk * rows / code_chunks(rows);
}

#endif
