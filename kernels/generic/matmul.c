/* spmm_f32, the reference: plain loops over the definition in abi.h, any CPU. */
#include "../kernels.h"

static void begin_row(const coppice_spmm_f32_args *args, int64_t row, float *y) {
    const float bias = args->bias ? args->bias[row] : 0.0f;
    const float *residual = args->residual ? args->residual + row * args->residual_stride : 0;
    for (int64_t pixel = 0; pixel < args->pixels; pixel++)
        y[pixel] = residual ? bias + residual[pixel] : bias;
}

static void add_entries(const coppice_spmm_f32_args *args, int64_t slab, int64_t row, float *y) {
    const coppice_csr_f32 *weight = &args->weight;
    const uint32_t *starts = weight->starts + slab * weight->rows + row;
    for (uint32_t entry = starts[0]; entry < starts[1]; entry++) {
        const float value = weight->values[entry];
        const float *x = args->x + (slab * weight->slab + weight->columns[entry]) * args->x_stride;
        for (int64_t pixel = 0; pixel < args->pixels; pixel++)
            y[pixel] += value * x[pixel];
    }
}

/* Comparisons with NaN are false: it stays. */
static void clamp_row(const coppice_spmm_f32_args *args, float *y) {
    for (int64_t pixel = 0; pixel < args->pixels; pixel++) {
        const float raised = y[pixel] < args->lower ? args->lower : y[pixel];
        y[pixel] = raised > args->upper ? args->upper : raised;
    }
}

void coppice_spmm_f32_generic(const coppice_spmm_f32_args *args) {
    const int64_t slabs = coppice_slabs(&args->weight);
    if (args->pixels == 0)
        return;
    for (int64_t row = 0; row < args->weight.rows; row++) {
        float *y = args->y + row * args->y_stride;
        begin_row(args, row, y);
        for (int64_t slab = 0; slab < slabs; slab++)
            add_entries(args, slab, row, y);
        clamp_row(args, y);
    }
}
