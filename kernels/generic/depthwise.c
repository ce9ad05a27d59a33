/* depthwise, the reference: plain loops over the definition in abi.h, any CPU. */
#include "../kernels.h"

/* What x holds at a place, zero outside of it. */
static float at(const coppice_depthwise_args *args, int64_t source, int64_t y, int64_t x) {
    const coppice_window *w = &args->window;
    if (y < 0 || y >= w->height || x < 0 || x >= w->width)
        return 0.0f;
    return coppice_load(args->type, args->x, source * w->channel_stride + y * w->row_stride + x);
}

static float dot(const coppice_depthwise_args *args, int64_t row, int64_t oy, int64_t ox) {
    const coppice_window *w = &args->window;
    const int64_t source = args->sources ? args->sources[row] : row;
    const float *weight = args->weight + row * w->kernel_y * w->kernel_x;
    float sum = 0.0f;
    for (int64_t ky = 0; ky < w->kernel_y; ky++)
        for (int64_t kx = 0; kx < w->kernel_x; kx++)
            sum += weight[ky * w->kernel_x + kx] * at(args, source, oy * w->stride_y + ky * w->dilation_y - w->pad_y,
                                                      ox * w->stride_x + kx * w->dilation_x - w->pad_x);
    return sum;
}

void coppice_depthwise_generic(const coppice_depthwise_args *args) {
    const coppice_window *w = &args->window;
    const int64_t pixels = w->out_height * w->out_width;
    const int64_t first = pixels * args->work.share / args->work.shares;
    const int64_t end = pixels * (args->work.share + 1) / args->work.shares;
    for (int64_t row = 0; row < args->rows; row++) {
        const float bias = args->bias ? args->bias[row] : 0.0f;
        for (int64_t pixel = first; pixel < end; pixel++) {
            const float z = dot(args, row, pixel / w->out_width, pixel % w->out_width) + bias;
            coppice_store(args->type, args->y, row * args->y_stride + pixel,
                          coppice_activate(args->activation, args->lower, args->upper, z));
        }
    }
}
