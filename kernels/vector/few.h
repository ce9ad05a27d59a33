/* Products with few pixels: all of x at hand, and y of a band from its sums. */
#ifndef COPPICE_VECTOR_FEW_H
#define COPPICE_VECTOR_FEW_H

#include "pack.h"

enum { most_few = COPPICE_FEW_PIXELS };

/* A CASE(height, pixels) for every height of bands and number of pixels, which are constants in its code. */
/* clang-format off */
#define FEW_CASES                                                                                                      \
    CASE(4, 1) CASE(4, 2) CASE(4, 3) CASE(4, 4) CASE(8, 1) CASE(8, 2) CASE(8, 3) CASE(8, 4) CASE(16, 1) CASE(16, 2)    \
    CASE(16, 3) CASE(16, 4)
/* clang-format on */

/* x of all columns in fp32, `pixels` side by side. */
static inline const float *narrow_x(const coppice_matmul_args *args, float *room) {
    const int pixels = (int)args->pixels;
    if (args->type == COPPICE_F32 && args->x_stride == pixels)
        return args->x;
    if (args->x_stride == pixels)
        return widen(args->type, args->x, 0, (size_t)(args->weight.cols * pixels), room);
    for (int64_t column = 0; column < args->weight.cols; column++)
        for (int pixel = 0; pixel < pixels; pixel++)
            room[column * pixels + pixel] = coppice_load(args->type, args->x, column * args->x_stride + pixel);
    return room;
}

/* sums[pixels][height] */
static inline void finish_band(const coppice_matmul_args *args, int64_t band, const float *sums) {
    const coppice_weight *weight = &args->weight;
    for (int64_t r = 0; r < weight->height; r++) {
        const int64_t row = band * weight->height + r;
        for (int64_t pixel = 0; pixel < args->pixels && row < weight->rows; pixel++) {
            float z = sums[pixel * weight->height + r] * (weight->scales ? weight->scales[row] : 1.0f);
            z += args->bias ? args->bias[row] : 0.0f;
            if (args->residual)
                z += coppice_load(args->type, args->residual, row * args->residual_stride + pixel);
            coppice_store(args->type, args->y, row * args->y_stride + pixel,
                          coppice_activate(args->activation, args->lower, args->upper, z));
        }
    }
}

#endif
