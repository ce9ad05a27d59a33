/* spmm_f32 and its weight: what may be passed. */
#include "kernels.h"

#include <stddef.h>

static const int64_t addressable = PTRDIFF_MAX / (int64_t)sizeof(float);

static int misaligned(const void *pointer, size_t size) {
    return (uintptr_t)pointer % size != 0;
}

static int32_t check_sizes(const coppice_csr_f32 *weight) {
    if (weight->layout != COPPICE_SLAB_CSR)
        return COPPICE_LAYOUT;
    if (weight->rows < 0 || weight->rows > INT32_MAX || weight->cols < 0 || weight->cols > INT32_MAX)
        return COPPICE_SIZE;
    if (weight->slab < 1 || weight->slab > COPPICE_SLAB_MAX)
        return COPPICE_SIZE;
    if (weight->entries < 0 || weight->entries > UINT32_MAX || weight->entries > addressable)
        return COPPICE_SIZE;
    if (weight->rows > 0 && coppice_slabs(weight) > (addressable - 1) / weight->rows)
        return COPPICE_SIZE;
    return COPPICE_OK;
}

static int32_t check_weight(const coppice_csr_f32 *weight) {
    int32_t status = check_sizes(weight);
    if (status != COPPICE_OK)
        return status;
    if (!weight->starts || (weight->entries > 0 && (!weight->columns || !weight->values)))
        return COPPICE_NULL;
    if (misaligned(weight->starts, sizeof(uint32_t)) || misaligned(weight->columns, sizeof(uint16_t)) ||
        misaligned(weight->values, sizeof(float)))
        return COPPICE_ALIGNMENT;
    return COPPICE_OK;
}

/* A matrix of `rows` rows of `pixels` elements each. */
static int32_t check_matrix(const float *data, int64_t rows, int64_t pixels, int64_t stride) {
    if (rows == 0 || pixels == 0)
        return COPPICE_OK;
    if (!data)
        return COPPICE_NULL;
    if (misaligned(data, sizeof(float)))
        return COPPICE_ALIGNMENT;
    if (stride < pixels || stride > addressable / rows)
        return COPPICE_STRIDE;
    return COPPICE_OK;
}

int32_t coppice_csr_validate(const coppice_csr_f32 *weight) {
    if (!weight)
        return COPPICE_NULL;
    int32_t status = check_weight(weight);
    if (status != COPPICE_OK)
        return status;
    const int64_t slabs = coppice_slabs(weight), lists = slabs * weight->rows;
    if (weight->starts[0] != 0 || weight->starts[lists] != weight->entries)
        return COPPICE_STARTS;
    for (int64_t list = 0; list < lists; list++)
        if (weight->starts[list] > weight->starts[list + 1])
            return COPPICE_STARTS;
    for (int64_t list = 0; list < lists; list++) {
        const int64_t rest = weight->cols - list / weight->rows * weight->slab;
        const int64_t width = rest < weight->slab ? rest : weight->slab;
        int64_t last = -1;
        for (uint32_t entry = weight->starts[list]; entry < weight->starts[list + 1]; entry++) {
            const int64_t column = weight->columns[entry];
            if (column <= last || column >= width)
                return COPPICE_COLUMNS;
            last = column;
        }
    }
    return COPPICE_OK;
}

int64_t coppice_spmm_f32_scratch(const coppice_spmm_f32_args *args) {
    if (!args)
        return COPPICE_NULL;
    int32_t status = check_sizes(&args->weight);
    if (status != COPPICE_OK)
        return status;
    const coppice_csr_f32 *weight = &args->weight;
    const int64_t width = weight->cols < weight->slab ? weight->cols : weight->slab;
    return width * COPPICE_PANEL_PIXELS * (int64_t)sizeof(float) + COPPICE_SCRATCH_ALIGNMENT;
}

int32_t coppice_spmm_f32_check(const coppice_spmm_f32_args *args) {
    if (!args)
        return COPPICE_NULL;
    const coppice_csr_f32 *weight = &args->weight;
    int32_t status = check_weight(weight);
    if (status != COPPICE_OK)
        return status;
    if (args->pixels < 0 || args->pixels > INT32_MAX)
        return COPPICE_SIZE;
    if (!(args->lower <= args->upper))
        return COPPICE_CLAMP;
    if (misaligned(args->bias, sizeof(float)))
        return COPPICE_ALIGNMENT;
    status = check_matrix(args->x, weight->cols, args->pixels, args->x_stride);
    if (status == COPPICE_OK)
        status = check_matrix(args->y, weight->rows, args->pixels, args->y_stride);
    if (status == COPPICE_OK && args->residual)
        status = check_matrix(args->residual, weight->rows, args->pixels, args->residual_stride);
    if (status != COPPICE_OK)
        return status;
    const int64_t scratch = coppice_spmm_f32_scratch(args);
    if (!args->scratch)
        return COPPICE_NULL;
    return args->scratch_bytes < scratch ? COPPICE_SCRATCH : COPPICE_OK;
}
