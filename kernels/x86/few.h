/* What the layouts for few pixels have in common: x of all columns, and y from the sums of some rows. AVX-512. */
#ifndef COPPICE_X86_FEW_H
#define COPPICE_X86_FEW_H

#include "../layouts.h"
#include "../vector/panel.h"

enum { most_few_pixels = COPPICE_FEW_PIXELS };

/* Whether x is at hand as a whole, for so few pixels that rows of weights lie along the vectors. */
static inline int is_few_packed(const coppice_matmul_args *args) {
    return args->pixels <= most_few_pixels && !args->window;
}

/* x in fp32, [pixels][coppice_few_width], zeros behind its columns. */
static inline const float *few_x(const coppice_matmul_args *args, float *room) {
    const int64_t cols = args->weight.cols, width = coppice_few_width(&args->weight);
    for (int64_t pixel = 0; pixel < args->pixels; pixel++) {
        float *to = room + pixel * width;
        if (args->x_stride == 1)
            for (int64_t column = 0; column < cols; column += LANES) {
                const int64_t left = cols - column;
                store(to + column, load_as(args->type, args->x, column + pixel, left < LANES ? (int)left : LANES));
            }
        else
            for (int64_t column = 0; column < cols; column++)
                to[column] = coppice_load(args->type, args->x, column * args->x_stride + pixel);
        memset(to + cols, 0, (size_t)(width - cols) * sizeof *to);
    }
    return room;
}

/* y of `rows` rows from `first` on, of one pixel whose rows stand side by side. */
static inline void finish_side_by_side(const coppice_matmul_args *args, int64_t first, int64_t rows,
                                       const float *sums) {
    const vector lower = broadcast(args->lower), upper = broadcast(args->upper);
    const float *scales = args->weight.scales;
    for (int64_t row = 0; row < rows; row += LANES) {
        const int count = rows - row < LANES ? (int)(rows - row) : LANES;
        const int64_t place = first + row;
        vector z = load_part(sums + row, count);
        if (scales)
            z = multiply(z, load_part(scales + place, count));
        if (args->bias)
            z = add(z, load_part(args->bias + place, count));
        if (args->residual)
            z = add(z, load_as(args->type, args->residual, place, count));
        store_as(args->type, args->y, place, count, finished(args->activation, lower, upper, z));
    }
}

/* y of `rows` rows from `first` on; sums[pixels][stride] begin with the first of them. */
static inline void finish_few(const coppice_matmul_args *args, int64_t first, int64_t rows, const float *sums,
                              int64_t stride) {
    if (args->pixels == 1 && args->y_stride == 1 && (!args->residual || args->residual_stride == 1)) {
        finish_side_by_side(args, first, rows, sums);
        return;
    }
    for (int64_t row = first; row < first + rows; row++)
        for (int64_t pixel = 0; pixel < args->pixels; pixel++) {
            float z = sums[pixel * stride + row - first] * (args->weight.scales ? args->weight.scales[row] : 1.0f);
            z += args->bias ? args->bias[row] : 0.0f;
            if (args->residual)
                z += coppice_load(args->type, args->residual, row * args->residual_stride + pixel);
            coppice_store(args->type, args->y, row * args->y_stride + pixel,
                          coppice_activate(args->activation, args->lower, args->upper, z));
        }
}

/* FEW_TYPES(call) expands to call(type, pixels) for the type of the weight and the pixels at hand, both constants. */
#define FEW_PIXELS(call, type)                                                                                         \
    switch (args->pixels) {                                                                                            \
    case 1:                                                                                                            \
        call(type, 1);                                                                                                 \
        break;                                                                                                         \
    case 2:                                                                                                            \
        call(type, 2);                                                                                                 \
        break;                                                                                                         \
    case 3:                                                                                                            \
        call(type, 3);                                                                                                 \
        break;                                                                                                         \
    case 4:                                                                                                            \
        call(type, 4);                                                                                                 \
        break;                                                                                                         \
    default:                                                                                                           \
        break;                                                                                                         \
    }

#define FEW_TYPES(call)                                                                                                \
    switch (args->weight.type) {                                                                                       \
    case COPPICE_F16:                                                                                                  \
        FEW_PIXELS(call, COPPICE_F16)                                                                                  \
        break;                                                                                                         \
    case COPPICE_BF16:                                                                                                 \
        FEW_PIXELS(call, COPPICE_BF16)                                                                                 \
        break;                                                                                                         \
    case COPPICE_I8:                                                                                                   \
        FEW_PIXELS(call, COPPICE_I8)                                                                                   \
        break;                                                                                                         \
    default:                                                                                                           \
        FEW_PIXELS(call, COPPICE_F32)                                                                                  \
    }

#endif
