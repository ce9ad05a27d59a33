/* Blocks of activations for the algorithms of this folder: fp32, aligned, contiguous, padded to whole vectors. */
#ifndef COPPICE_VECTOR_PACK_H
#define COPPICE_VECTOR_PACK_H

#include "elements.h"

#include <string.h>

/* The columns of one slab by the pixels of one panel, row-major; whole vectors may be read. */
typedef struct block {
    const float *x;
    int64_t stride;
} block;

/* Pixels from `first` on, in `vectors` vectors; of the last one only `tail` < LANES lanes count unless tail is zero. */
typedef struct panel {
    int64_t first;
    int vectors;
    int tail;
    const struct outline *outline; /* of the windows over it (windows.h), or NULL */
} panel;

/* Pixels of a panel of vectors of so many lanes. */
ALWAYS_INLINE int64_t pixels_of(panel part, int lanes) {
    return (int64_t)part.vectors * lanes - (part.tail ? lanes - part.tail : 0);
}

/* Lanes of vector `index` of a panel that count. */
ALWAYS_INLINE int lanes_of(panel part, int index) {
    return part.tail && index + 1 == part.vectors ? part.tail : LANES;
}

/* values[first .. first + count] of a narrow type as fp32 in `to`; up to a vector more is written, none more is read.
 */
static inline const float *widen(int type, const void *values, size_t first, size_t count, float *to) {
    for (size_t i = 0; i < count; i += LANES) {
        const int held = count - i < LANES ? (int)(count - i) : LANES;
        store(to + i, values_at(type, values, first + i, held));
    }
    return to;
}

ALWAYS_INLINE void copy_rows(const int type, const coppice_matmul_args *args, int64_t first, int64_t columns,
                             panel part, float *to) {
    const int64_t stride = (int64_t)part.vectors * LANES;
    for (int64_t column = 0; column < columns; column++)
        for (int v = 0; v < part.vectors; v++) {
            const int64_t place = (first + column) * args->x_stride + part.first + v * LANES;
            store(to + column * stride + v * LANES, load_as(type, args->x, place, lanes_of(part, v)));
        }
}

/* `columns` rows of x from `first` on. */
static inline block pack_rows(const coppice_matmul_args *args, int64_t first, int64_t columns, panel part, float *to) {
    EACH_TYPE(args->type, copy_rows(type, args, first, columns, part, to))
    return (block){to, (int64_t)part.vectors * LANES};
}

#endif
