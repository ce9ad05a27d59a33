/* eltwise for vector registers: one algorithm, compiled once per instruction set. */
#ifndef COPPICE_VECTOR_ELTWISE_H
#define COPPICE_VECTOR_ELTWISE_H

#include "activation.h"
#include "elements.h"

/* Pixels first .. end of a row. */
ALWAYS_INLINE void eltwise_row(const int x_type, const int z_type, const int y_type, const coppice_eltwise_args *args,
                               int64_t row, int64_t first, int64_t end) {
    const vector a = broadcast(args->a), b = broadcast(args->b);
    const vector lower = broadcast(args->lower), upper = broadcast(args->upper);
    const int activation = args->activation;
    const void *x = args->x, *z = args->z;
    void *y = args->y;
    const int64_t x_row = row * args->x_stride, z_row = row * args->z_stride, y_row = row * args->y_stride;
    for (int64_t i = first; i < end; i += LANES) {
        const int count = (int)(end - i < LANES ? end - i : LANES);
        vector sum = multiply(a, load_as(x_type, x, x_row + i, count));
        if (z)
            sum = multiply_add(b, load_as(z_type, z, z_row + i, count), sum);
        store_as(y_type, y, y_row + i, count, finished(activation, lower, upper, sum));
    }
}

/* Rows that follow each other without a gap are one row. */
static void eltwise_vectors(const coppice_eltwise_args *args) {
    const int whole = args->x_stride == args->pixels && args->y_stride == args->pixels &&
                      (!args->z || args->z_stride == args->pixels);
    const int64_t rows = whole ? args->pixels > 0 : args->rows;
    const int64_t pixels = whole ? args->rows * args->pixels : args->pixels;
    const coppice_part part = coppice_part_of(&args->work, rows, (pixels + LANES - 1) / LANES);
    const int64_t first = part.line * LANES, end = part.end_line * LANES < pixels ? part.end_line * LANES : pixels;
    const int alike = args->x_type == args->y_type && (!args->z || args->z_type == args->x_type);
    for (int64_t row = part.row; row < part.end_row; row++)
        if (alike && args->x_type == COPPICE_F32)
            eltwise_row(COPPICE_F32, COPPICE_F32, COPPICE_F32, args, row, first, end);
        else if (alike && args->x_type == COPPICE_F16)
            eltwise_row(COPPICE_F16, COPPICE_F16, COPPICE_F16, args, row, first, end);
        else if (alike)
            eltwise_row(COPPICE_BF16, COPPICE_BF16, COPPICE_BF16, args, row, first, end);
        else
            eltwise_row(args->x_type, args->z_type, args->y_type, args, row, first, end);
}

#endif
