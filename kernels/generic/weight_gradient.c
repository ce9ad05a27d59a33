/* weight_gradient, the reference: plain loops over the definition in abi.h, any CPU. */
#include "columns.h"

#include <string.h>

void coppice_gradient_clear(const coppice_weight_gradient_args *args, int64_t first_band, int64_t end_band) {
    const coppice_weight *weight = &args->weight;
    const int64_t slabs = coppice_slabs(weight), first_row = first_band * weight->height;
    const int64_t end = end_band * weight->height, end_row = end < weight->rows ? end : weight->rows;
    for (int64_t slab = 0; slab < slabs; slab++) {
        const size_t first = coppice_first_entry(weight, slab, first_band);
        const size_t count = (coppice_first_entry(weight, slab, end_band) - first) * (size_t)weight->height;
        if (count > 0)
            memset(args->gradient + first * (size_t)weight->height, 0, count * sizeof(float));
    }
    if (args->bias && first_row < end_row)
        memset(args->bias + first_row, 0, (size_t)(end_row - first_row) * sizeof(float));
}

/* The sum of dy times a column over `count` pixels from `first` on. */
static float dot(const columns *from, int64_t column, int64_t first, int count, const float *dy) {
    float room[COPPICE_PANEL_PIXELS], sum = 0.0f;
    const float *x = column_of(from, column, first, count, room);
    for (int pixel = 0; pixel < count; pixel++)
        sum += dy[pixel] * x[pixel];
    return sum;
}

static void add_row(const coppice_weight_gradient_args *args, int64_t row, int64_t first, int count) {
    const coppice_weight *weight = &args->weight;
    const int64_t band = row / weight->height, slabs = coppice_slabs(weight);
    const columns results = {args->type, args->dy, args->dy_stride, NULL};
    const columns from = {args->type, args->x, args->x_stride, args->window};
    float room[COPPICE_PANEL_PIXELS];
    const float *dy = column_of(&results, row, first, count, room);
    for (int pixel = 0; pixel < count && args->bias; pixel++)
        args->bias[row] += dy[pixel];
    for (int64_t slab = 0; slab < slabs; slab++) {
        const size_t begin = coppice_first_entry(weight, slab, band);
        const size_t end = begin + coppice_entries(weight, slab, band);
        for (size_t entry = begin; entry < end; entry++) {
            const int64_t place = weight->layout == COPPICE_SPARSE ? weight->columns[entry] : (int64_t)(entry - begin);
            args->gradient[(int64_t)entry * weight->height + row % weight->height] +=
                dot(&from, slab * weight->slab + place, first, count, dy);
        }
    }
}

void coppice_weight_gradient_generic(const coppice_weight_gradient_args *args) {
    const coppice_weight *weight = &args->weight;
    const int64_t bands = coppice_bands(weight), share = args->work.share, shares = args->work.shares;
    const int64_t first_band = bands * share / shares, end_band = bands * (share + 1) / shares;
    if (!args->accumulate)
        coppice_gradient_clear(args, first_band, end_band);
    for (int64_t row = first_band * weight->height; row < end_band * weight->height && row < weight->rows; row++)
        for (int64_t first = 0; first < args->pixels; first += COPPICE_PANEL_PIXELS) {
            const int64_t left = args->pixels - first;
            add_row(args, row, first, (int)(left < COPPICE_PANEL_PIXELS ? left : COPPICE_PANEL_PIXELS));
        }
}
