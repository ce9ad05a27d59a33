/* softmax, the reference: plain loops over the definition in abi.h, any CPU. */
#include "../kernels.h"

#include <math.h>

void coppice_softmax_generic(const coppice_softmax_args *args) {
    const int64_t end = args->rows * (args->work.share + 1) / args->work.shares;
    for (int64_t row = args->rows * args->work.share / args->work.shares; row < end; row++) {
        float greatest = -INFINITY, sum = 0.0f;
        for (int64_t i = 0; i < args->pixels; i++)
            greatest = fmaxf(greatest, args->scale * coppice_load(args->type, args->x, row * args->x_stride + i));
        for (int64_t i = 0; i < args->pixels; i++)
            sum += expf(args->scale * coppice_load(args->type, args->x, row * args->x_stride + i) - greatest);
        for (int64_t i = 0; i < args->pixels; i++) {
            const float x = args->scale * coppice_load(args->type, args->x, row * args->x_stride + i);
            coppice_store(args->type, args->y, row * args->y_stride + i, expf(x - greatest) / sum);
        }
    }
}
