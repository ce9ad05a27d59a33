/* eltwise: what may be passed. */
#include "arguments.h"

int32_t coppice_eltwise_check(const coppice_eltwise_args *args) {
    if (!args)
        return COPPICE_NULL;
    if (!is_activation_type(args->x_type) || !is_activation_type(args->y_type) ||
        (args->z && !is_activation_type(args->z_type)))
        return COPPICE_TYPE;
    int32_t status = check_epilogue(args->activation, args->lower, args->upper);
    if (status != COPPICE_OK)
        return status;
    if (!within(args->rows, 0, size_max) || !within(args->pixels, 0, size_max))
        return COPPICE_SIZE;
    status = check_matrix(args->x, coppice_type_size(args->x_type), args->rows, args->pixels, args->x_stride);
    if (status == COPPICE_OK && args->z)
        status = check_matrix(args->z, coppice_type_size(args->z_type), args->rows, args->pixels, args->z_stride);
    if (status == COPPICE_OK)
        status = check_matrix(args->y, coppice_type_size(args->y_type), args->rows, args->pixels, args->y_stride);
    return status == COPPICE_OK ? check_work(&args->work, 0) : status;
}
