/* The columns of x as a matrix, whether it is one or the windows of a convolution. */
#ifndef COPPICE_GENERIC_COLUMNS_H
#define COPPICE_GENERIC_COLUMNS_H

#include "../kernels.h"

typedef struct columns {
    int32_t type;
    const void *x;
    int64_t stride;
    const coppice_window *window; /* or NULL */
} columns;

/* What column `column` holds at `pixel`. */
static inline float at(const columns *from, int64_t column, int64_t pixel) {
    const coppice_window *w = from->window;
    if (!w)
        return coppice_load(from->type, from->x, column * from->stride + pixel);
    const int64_t ky = column / w->kernel_x % w->kernel_y, kx = column % w->kernel_x;
    const int64_t row = pixel / w->out_width * w->stride_y + ky * w->dilation_y - w->pad_y;
    const int64_t place = pixel % w->out_width * w->stride_x + kx * w->dilation_x - w->pad_x;
    if (row < 0 || row >= w->height || place < 0 || place >= w->width)
        return 0.0f;
    const int64_t channel = column / (w->kernel_y * w->kernel_x);
    return coppice_load(from->type, from->x, channel * w->channel_stride + row * w->row_stride + place);
}

/* `count` pixels of a column from `first` on: x itself where it holds fp32 side by side, else copied into `room`. */
static inline const float *column_of(const columns *from, int64_t column, int64_t first, int count, float *room) {
    if (!from->window && from->type == COPPICE_F32)
        return (const float *)from->x + column * from->stride + first;
    for (int pixel = 0; pixel < count; pixel++)
        room[pixel] = at(from, column, first + pixel);
    return room;
}

#endif
