/* eltwise, the reference: plain loops over the definition in abi.h, any CPU. */
#include "../kernels.h"

void coppice_eltwise_generic(const coppice_eltwise_args *args) {
    const int64_t first = args->pixels * args->work.share / args->work.shares;
    const int64_t end = args->pixels * (args->work.share + 1) / args->work.shares;
    for (int64_t row = 0; row < args->rows; row++)
        for (int64_t pixel = first; pixel < end; pixel++) {
            float sum = args->a * coppice_load(args->x_type, args->x, row * args->x_stride + pixel);
            if (args->z)
                sum += args->b * coppice_load(args->z_type, args->z, row * args->z_stride + pixel);
            coppice_store(args->y_type, args->y, row * args->y_stride + pixel,
                          coppice_activate(args->activation, args->lower, args->upper, sum));
        }
}
