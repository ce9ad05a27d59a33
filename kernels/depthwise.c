/* depthwise: what may be passed. */
#include "arguments.h"
#include "band.h"

int64_t coppice_depthwise_scratch(const coppice_depthwise_args *args) {
    if (!args)
        return COPPICE_NULL;
    const int32_t status = check_window(&args->window);
    return status == COPPICE_OK ? coppice_band_bytes(&args->window, COPPICE_BAND_ROWS) : status;
}

static int32_t check_sources(const coppice_depthwise_args *args) {
    if (!args->sources)
        return args->rows == args->window.channels ? COPPICE_OK : COPPICE_CHANNELS;
    if (misaligned(args->sources, sizeof(int32_t)))
        return COPPICE_ALIGNMENT;
    for (int64_t row = 0; row < args->rows; row++)
        if (!within(args->sources[row], 0, args->window.channels - 1))
            return COPPICE_CHANNELS;
    return COPPICE_OK;
}

int32_t coppice_depthwise_check(const coppice_depthwise_args *args) {
    if (!args)
        return COPPICE_NULL;
    const coppice_window *window = &args->window;
    if (!is_activation_type(args->type))
        return COPPICE_TYPE;
    int32_t status = check_epilogue(args->activation, args->lower, args->upper);
    if (status == COPPICE_OK)
        status = check_window(window);
    if (status != COPPICE_OK)
        return status;
    if (!within(args->rows, 0, size_max) || window->kernel_y > addressable / window->kernel_x ||
        (args->rows > 0 && window->kernel_y * window->kernel_x > addressable / args->rows))
        return COPPICE_SIZE;
    if (args->rows > 0 && !args->weight)
        return COPPICE_NULL;
    if (misaligned(args->weight, sizeof(float)) || misaligned(args->bias, sizeof(float)))
        return COPPICE_ALIGNMENT;
    const int64_t pixels = window->out_height * window->out_width;
    status = check_sources(args);
    if (status == COPPICE_OK)
        status = check_image(args->x, args->type, window);
    if (status == COPPICE_OK)
        status = check_matrix(args->y, coppice_type_size(args->type), args->rows, pixels, args->y_stride);
    return status == COPPICE_OK ? check_work(&args->work, coppice_depthwise_scratch(args)) : status;
}
