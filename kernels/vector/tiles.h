/* Tiles of registers: TILE_CASES, which comes before this file, has a CASE(rows, vectors, chains) for each. */
#ifndef COPPICE_VECTOR_TILES_H
#define COPPICE_VECTOR_TILES_H

#include <stdint.h>

/* Rows of the tallest tile of so many vectors. */
static int tile_rows(int64_t height, int vectors) {
    int tallest = 0;
#define CASE(rows, width, chains)                                                                                      \
    if (width == vectors && rows <= height && rows > tallest && (rows == 1) == (height == 1))                          \
        tallest = rows;
    TILE_CASES
#undef CASE
    return tallest;
}

#endif
