/* weight_gradient: what may be passed. */
#include "arguments.h"

/* The pattern of the weight, its values being the gradient. */
static coppice_weight pattern(const coppice_weight_gradient_args *args) {
    coppice_weight weight = args->weight;
    weight.type = COPPICE_F32, weight.values = args->gradient, weight.scales = NULL;
    return weight;
}

/* A panel of a block of x, some room past it (tiles take four columns at a time), and a panel of some rows of dy. */
int64_t coppice_weight_gradient_scratch(const coppice_weight_gradient_args *args) {
    if (!args)
        return COPPICE_NULL;
    const coppice_weight weight = pattern(args);
    const int32_t status = coppice_weight_sizes(&weight, 1);
    if (status != COPPICE_OK)
        return status;
    const int64_t columns = coppice_gradient_columns(&weight) + COPPICE_GRADIENT_ROWS + 3;
    const int64_t floats = columns * coppice_gradient_pixels(&weight) + COPPICE_PANEL_SLACK;
    return floats * (int64_t)sizeof(float) + 2 * COPPICE_SCRATCH_ALIGNMENT;
}

int32_t coppice_weight_gradient_check(const coppice_weight_gradient_args *args) {
    if (!args)
        return COPPICE_NULL;
    const coppice_weight weight = pattern(args);
    int32_t status = coppice_weight_check(&weight, 1);
    if (status != COPPICE_OK)
        return status;
    if (!is_activation_type(args->type))
        return COPPICE_TYPE;
    if (!within(args->pixels, 0, size_max))
        return COPPICE_SIZE;
    if (misaligned(args->bias, sizeof(float)))
        return COPPICE_ALIGNMENT;
    status = check_matrix(args->dy, coppice_type_size(args->type), weight.rows, args->pixels, args->dy_stride);
    if (status == COPPICE_OK)
        status = check_columns(args->x, args->type, args->x_stride, args->window, weight.cols, args->pixels);
    return status == COPPICE_OK ? check_work(&args->work, coppice_weight_gradient_scratch(args)) : status;
}
