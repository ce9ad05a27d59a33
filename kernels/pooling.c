/* pooling: what may be passed. */
#include "arguments.h"
#include "band.h"

/* A band, and how many places of the windows of an output row count. */
int64_t coppice_pooling_scratch(const coppice_pooling_args *args) {
    if (!args)
        return COPPICE_NULL;
    const coppice_window *window = &args->window;
    const int32_t status = check_window(window);
    if (status != COPPICE_OK)
        return status;
    const int64_t band = coppice_band_bytes(window, COPPICE_BAND_ROWS);
    const int64_t counts = (window->out_width + COPPICE_PANEL_SLACK) * (int64_t)sizeof(float);
    if (band < 0 || band > PTRDIFF_MAX - counts)
        return COPPICE_SIZE;
    return band == 0 ? 0 : band + counts + COPPICE_SCRATCH_ALIGNMENT;
}

int32_t coppice_pooling_check(const coppice_pooling_args *args) {
    if (!args)
        return COPPICE_NULL;
    const coppice_window *window = &args->window;
    if (args->kind != COPPICE_MAX_POOLING && args->kind != COPPICE_AVERAGE_POOLING)
        return COPPICE_KIND;
    if (!is_activation_type(args->type))
        return COPPICE_TYPE;
    if (!within(args->after_y, 0, size_max) || !within(args->after_x, 0, size_max))
        return COPPICE_SIZE;
    int32_t status = check_window(window);
    if (status == COPPICE_OK)
        status = check_image(args->x, args->type, window);
    if (status == COPPICE_OK)
        status = check_matrix(args->y, coppice_type_size(args->type), window->channels,
                              window->out_height * window->out_width, args->y_stride);
    return status == COPPICE_OK ? check_work(&args->work, coppice_pooling_scratch(args)) : status;
}
