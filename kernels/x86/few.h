/* What the layouts for few pixels have in common: x of all columns, and y from the sums of some rows. AVX-512. */
#ifndef COPPICE_X86_FEW_H
#define COPPICE_X86_FEW_H

#include "../layouts.h"
#include "../vector/panel.h"

/* Pixels that share the loads of a weight, and those up to which going over it again is quicker than unpacking it. */
enum { most_few_pixels = COPPICE_FEW_PIXELS, most_repeated_pixels = 16 };

/* Whether x is taken as a whole, with rows of the weight along the vectors. */
static inline int is_few_packed(const coppice_matmul_args *args) {
    return args->pixels <= most_repeated_pixels && !args->window;
}

/* run() on most_few_pixels at a time. */
static inline void repeat_few(const coppice_matmul_args *args, void run(const coppice_matmul_args *)) {
    const size_t size = coppice_type_size(args->type);
    coppice_matmul_args part = *args;
    for (int64_t pixel = 0; pixel < args->pixels && args->weight.rows > 0; pixel += most_few_pixels) {
        const int64_t left = args->pixels - pixel;
        part.pixels = left < most_few_pixels ? left : most_few_pixels;
        if (args->x)
            part.x = (const char *)args->x + (size_t)pixel * size;
        part.y = (char *)args->y + (size_t)pixel * size;
        if (args->residual)
            part.residual = (const char *)args->residual + (size_t)pixel * size;
        run(&part);
    }
}

/* x in fp32, [pixels][coppice_few_width], zeros behind its columns. */
static inline const float *few_x(const coppice_matmul_args *args, float *room) {
    const int64_t cols = args->weight.cols, width = coppice_few_width(&args->weight), stride = args->x_stride;
    const float *singles = args->type == COPPICE_F32 ? args->x : NULL;
    for (int64_t pixel = 0; pixel < args->pixels; pixel++) {
        float *to = room + pixel * width;
        if (stride == 1)
            for (int64_t column = 0; column < cols; column += LANES) {
                const int64_t left = cols - column;
                store(to + column, load_as(args->type, args->x, column + pixel, left < LANES ? (int)left : LANES));
            }
        else
            for (int64_t column = 0; column < cols; column++)
                to[column] = singles ? singles[column * stride + pixel]
                                     : coppice_load(args->type, args->x, column * stride + pixel);
        memset(to + cols, 0, (size_t)(width - cols) * sizeof *to);
    }
    return room;
}

/* `count` elements of a matrix of type `type`, one in each row: side by side where its stride is 1. */
static inline vector load_rows(int32_t type, const void *data, int64_t stride, int64_t place, int count) {
    float held[LANES] = {0};
    if (stride == 1)
        return load_as(type, data, place, count);
    for (int row = 0; row < count; row++)
        held[row] = coppice_load(type, data, place + row * stride);
    return load(held);
}

static inline void store_rows(int32_t type, void *data, int64_t stride, int64_t place, int count, vector value) {
    float held[LANES];
    if (stride == 1) {
        store_as(type, data, place, count, value);
        return;
    }
    store(held, value);
    for (int row = 0; row < count; row++)
        if (type == COPPICE_F32)
            ((float *)data)[place + row * stride] = held[row];
        else
            coppice_store(type, data, place + row * stride, held[row]);
}

/* y of `rows` rows from `first` on; sums[pixels][stride] begin with the first of them. */
static inline void finish_few(const coppice_matmul_args *args, int64_t first, int64_t rows, const float *sums,
                              int64_t stride) {
    const vector lower = broadcast(args->lower), upper = broadcast(args->upper);
    const float *scales = args->weight.scales;
    for (int64_t pixel = 0; pixel < args->pixels; pixel++)
        for (int64_t r = 0; r < rows; r += LANES) {
            const int count = rows - r < LANES ? (int)(rows - r) : LANES;
            const int64_t row = first + r;
            vector z = load_part(sums + pixel * stride + r, count);
            if (scales)
                z = multiply(z, load_part(scales + row, count));
            if (args->bias)
                z = add(z, load_part(args->bias + row, count));
            if (args->residual)
                z = add(z, load_rows(args->type, args->residual, args->residual_stride,
                                     row * args->residual_stride + pixel, count));
            z = finished(args->activation, lower, upper, z);
            store_rows(args->type, args->y, args->y_stride, row * args->y_stride + pixel, count, z);
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

#define FEW_TYPES(call) EACH_VALUE_TYPE(args->weight.type, FEW_PIXELS(call, type))

#endif
