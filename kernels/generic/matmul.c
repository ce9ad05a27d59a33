/* matmul, the reference: plain loops over the definition in abi.h, any CPU. */
#include "../layouts.h"
#include "columns.h"

/* sum[count] = a row of the weight times `count` pixels of x from `first` on. */
static void dots(const coppice_matmul_args *args, int64_t row, int64_t first, int count, float *sum) {
    const coppice_weight *weight = &args->weight;
    const int64_t band = row / weight->height, slabs = coppice_slabs(weight);
    const columns from = {args->type, args->x, args->x_stride, args->window};
    for (int pixel = 0; pixel < count; pixel++)
        sum[pixel] = 0.0f;
    for (int64_t slab = 0; slab < slabs; slab++) {
        const size_t begin = coppice_first_entry(weight, slab, band);
        const size_t end = begin + coppice_entries(weight, slab, band);
        for (size_t entry = begin; entry < end; entry++) {
            const int64_t place = weight->layout == COPPICE_SPARSE ? weight->columns[entry] : (int64_t)(entry - begin);
            const int64_t index = (int64_t)entry * weight->height + row % weight->height;
            const float value = coppice_load(weight->type, weight->values, index);
            float room[COPPICE_PANEL_PIXELS];
            const float *x = column_of(&from, slab * weight->slab + place, first, count, room);
            for (int pixel = 0; pixel < count; pixel++)
                sum[pixel] += value * x[pixel];
        }
    }
}

/* The same of a layout for few pixels. */
static void packed_dots(const coppice_matmul_args *args, int64_t row, int64_t first, int count, float *sum) {
    const columns from = {args->type, args->x, args->x_stride, args->window};
    int64_t cursor = 0;
    for (int pixel = 0; pixel < count; pixel++)
        sum[pixel] = 0.0f;
    for (int64_t slab = 0; slab < args->weight.cols; slab += unpacked_slab) {
        uint16_t places[unpacked_slab];
        float values[unpacked_slab];
        const int entries = coppice_unpack(&args->weight, row, slab, &cursor, places, values);
        for (int entry = 0; entry < entries; entry++) {
            float room[COPPICE_PANEL_PIXELS];
            const float *x = column_of(&from, slab + places[entry], first, count, room);
            for (int pixel = 0; pixel < count; pixel++)
                sum[pixel] += values[entry] * x[pixel];
        }
    }
}

static void finish(const coppice_matmul_args *args, int64_t row, int64_t first, int count, const float *sum) {
    const float scale = args->weight.scales ? args->weight.scales[row] : 1.0f,
                bias = args->bias ? args->bias[row] : 0.0f;
    for (int pixel = 0; pixel < count; pixel++) {
        float z = scale * sum[pixel] + bias;
        if (args->residual)
            z += coppice_load(args->type, args->residual, row * args->residual_stride + first + pixel);
        z = coppice_activate(args->activation, args->lower, args->upper, z);
        coppice_store(args->type, args->y, row * args->y_stride + first + pixel, z);
    }
}

void coppice_matmul_generic(const coppice_matmul_args *args) {
    const int64_t rows = args->weight.rows;
    const int64_t end = args->pixels * (args->work.share + 1) / args->work.shares;
    for (int64_t first = args->pixels * args->work.share / args->work.shares; first < end;
         first += COPPICE_PANEL_PIXELS) {
        const int count = (int)(end - first < COPPICE_PANEL_PIXELS ? end - first : COPPICE_PANEL_PIXELS);
        for (int64_t row = 0; row < rows; row++) {
            float sum[COPPICE_PANEL_PIXELS];
            if (coppice_is_packed(args->weight.layout))
                packed_dots(args, row, first, count, sum);
            else
                dots(args, row, first, count, sum);
            finish(args, row, first, count, sum);
        }
    }
}
