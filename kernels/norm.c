/* norm: what may be passed. */
#include "arguments.h"

#include <float.h>

int32_t coppice_norm_check(const coppice_norm_args *args) {
    if (!args)
        return COPPICE_NULL;
    if (args->kind != COPPICE_LAYER_NORM && args->kind != COPPICE_RMS_NORM)
        return COPPICE_KIND;
    if (!is_activation_type(args->type))
        return COPPICE_TYPE;
    if (!(args->epsilon >= 0.0f && args->epsilon <= FLT_MAX))
        return COPPICE_EPSILON;
    if (!within(args->channels, 0, size_max) || !within(args->tokens, 0, size_max))
        return COPPICE_SIZE;
    if (misaligned(args->weight, sizeof(float)) || misaligned(args->bias, sizeof(float)))
        return COPPICE_ALIGNMENT;
    const int64_t rows = args->token_rows ? args->tokens : args->channels;
    const int64_t pixels = args->token_rows ? args->channels : args->tokens;
    const size_t size = coppice_type_size(args->type);
    int32_t status = check_matrix(args->x, size, rows, pixels, args->x_stride);
    if (status == COPPICE_OK)
        status = check_matrix(args->y, size, rows, pixels, args->y_stride);
    return status == COPPICE_OK ? check_work(&args->work, 0) : status;
}
