/* softmax: what may be passed. */
#include "arguments.h"

/* One row in fp32. */
int64_t coppice_softmax_scratch(const coppice_softmax_args *args) {
    if (!args)
        return COPPICE_NULL;
    if (!within(args->pixels, 0, size_max))
        return COPPICE_SIZE;
    return (args->pixels + COPPICE_PANEL_SLACK) * (int64_t)sizeof(float) + COPPICE_SCRATCH_ALIGNMENT;
}

int32_t coppice_softmax_check(const coppice_softmax_args *args) {
    if (!args)
        return COPPICE_NULL;
    if (!is_activation_type(args->type))
        return COPPICE_TYPE;
    if (!within(args->rows, 0, size_max) || !within(args->pixels, 0, size_max))
        return COPPICE_SIZE;
    const size_t size = coppice_type_size(args->type);
    int32_t status = check_matrix(args->x, size, args->rows, args->pixels, args->x_stride);
    if (status == COPPICE_OK)
        status = check_matrix(args->y, size, args->rows, args->pixels, args->y_stride);
    return status == COPPICE_OK ? check_work(&args->work, coppice_softmax_scratch(args)) : status;
}
