/* pooling, the reference: plain loops over the definition in abi.h, any CPU. */
#include "../kernels.h"

#include <math.h>

static float pooled(const coppice_pooling_args *args, int64_t channel, int64_t oy, int64_t ox) {
    const coppice_window *w = &args->window;
    float greatest = -INFINITY, sum = 0.0f, count = 0.0f;
    for (int64_t ky = 0; ky < w->kernel_y; ky++)
        for (int64_t kx = 0; kx < w->kernel_x; kx++) {
            const int64_t y = oy * w->stride_y + ky * w->dilation_y - w->pad_y;
            const int64_t x = ox * w->stride_x + kx * w->dilation_x - w->pad_x;
            const int inside = y >= 0 && y < w->height && x >= 0 && x < w->width;
            if (inside || (args->count_padding && y < w->height + args->after_y && x < w->width + args->after_x))
                count += 1.0f;
            if (!inside)
                continue;
            const float value = coppice_load(args->type, args->x, channel * w->channel_stride + y * w->row_stride + x);
            greatest = value <= greatest ? greatest : value; /* comparisons with NaN are false */
            sum += value;
            if (value != value)
                return value;
        }
    return args->kind == COPPICE_MAX_POOLING ? greatest : sum / count;
}

void coppice_pooling_generic(const coppice_pooling_args *args) {
    const coppice_window *w = &args->window;
    const int64_t pixels = w->out_height * w->out_width;
    const int64_t first = pixels * args->work.share / args->work.shares;
    const int64_t end = pixels * (args->work.share + 1) / args->work.shares;
    for (int64_t channel = 0; channel < w->channels; channel++)
        for (int64_t pixel = first; pixel < end; pixel++)
            coppice_store(args->type, args->y, channel * args->y_stride + pixel,
                          pooled(args, channel, pixel / w->out_width, pixel % w->out_width));
}
