/* norm, the reference: plain loops over the definition in abi.h, any CPU. */
#include "../kernels.h"

#include <math.h>

static void norm_token(const coppice_norm_args *args, int64_t token) {
    const int64_t x_step = args->token_rows ? 1 : args->x_stride, y_step = args->token_rows ? 1 : args->y_stride;
    const int64_t x_first = args->token_rows ? token * args->x_stride : token;
    const int64_t y_first = args->token_rows ? token * args->y_stride : token;
    const float count = (float)args->channels;
    float mean = 0.0f, square = 0.0f;
    for (int64_t c = 0; c < args->channels && args->kind == COPPICE_LAYER_NORM; c++)
        mean += coppice_load(args->type, args->x, x_first + c * x_step);
    mean /= count;
    for (int64_t c = 0; c < args->channels; c++) {
        const float from_mean = coppice_load(args->type, args->x, x_first + c * x_step) - mean;
        square += from_mean * from_mean;
    }
    const float factor = 1.0f / sqrtf(square / count + args->epsilon);
    for (int64_t c = 0; c < args->channels; c++) {
        const float weight = args->weight ? args->weight[c] : 1.0f, bias = args->bias ? args->bias[c] : 0.0f;
        const float from_mean = coppice_load(args->type, args->x, x_first + c * x_step) - mean;
        coppice_store(args->type, args->y, y_first + c * y_step, from_mean * factor * weight + bias);
    }
}

void coppice_norm_generic(const coppice_norm_args *args) {
    const int64_t end = args->tokens * (args->work.share + 1) / args->work.shares;
    for (int64_t token = args->tokens * args->work.share / args->work.shares; token < end; token++)
        norm_token(args, token);
}
