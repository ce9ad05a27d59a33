/* matmul and its weight: what may be passed. */
#include "arguments.h"
#include "layouts.h"

#if COPPICE_X86
#include "x86/code.h"
#endif

static int is_height(int64_t height) {
    return height == 4 || height == 8 || height == 16;
}

int32_t coppice_weight_sizes(const coppice_weight *weight, int plain) {
    if (coppice_is_packed(weight->layout))
        return plain ? COPPICE_LAYOUT : coppice_packed_sizes(weight);
    const int dense = weight->layout == COPPICE_DENSE, single = weight->height == 1;
    if ((!dense && weight->layout != COPPICE_SPARSE) || !(is_height(weight->height) || (single && (plain || !dense))))
        return COPPICE_LAYOUT;
    if (!coppice_type_size(weight->type))
        return COPPICE_TYPE;
    const int64_t widest = dense && single ? size_max : COPPICE_SLAB_MAX;
    if (!within(weight->rows, 0, size_max) || !within(weight->cols, 0, size_max) || !within(weight->slab, 1, widest) ||
        !within(weight->entries, 0, UINT32_MAX))
        return COPPICE_SIZE;
    const int64_t bands = coppice_bands(weight);
    if (weight->entries > addressable / weight->height ||
        (bands > 0 && coppice_slabs(weight) > (addressable - 1) / bands))
        return COPPICE_SIZE;
    return dense && weight->entries != bands * weight->cols ? COPPICE_STARTS : COPPICE_OK;
}

int32_t coppice_weight_check(const coppice_weight *weight, int plain) {
    const int32_t status = coppice_weight_sizes(weight, plain);
    if (status != COPPICE_OK)
        return status;
    if (coppice_is_packed(weight->layout))
        return coppice_packed_pointers(weight);
    const int sparse = weight->layout == COPPICE_SPARSE;
    if ((sparse && !weight->starts) || (weight->entries > 0 && ((sparse && !weight->columns) || !weight->values)))
        return COPPICE_NULL;
    if (misaligned(weight->starts, sizeof(uint32_t)) || misaligned(weight->columns, sizeof(uint16_t)) ||
        misaligned(weight->values, coppice_type_size(weight->type)) || misaligned(weight->scales, sizeof(float)))
        return COPPICE_ALIGNMENT;
    return COPPICE_OK;
}

int32_t coppice_weight_validate(const coppice_weight *weight) {
    if (!weight)
        return COPPICE_NULL;
    const int32_t status = coppice_weight_check(weight, 0);
    if (status != COPPICE_OK || weight->layout == COPPICE_DENSE)
        return status;
    if (coppice_is_packed(weight->layout))
        return coppice_packed_validate(weight);
    const int64_t bands = coppice_bands(weight), lists = coppice_slabs(weight) * bands;
    if (weight->starts[0] != 0 || weight->starts[lists] != weight->entries)
        return COPPICE_STARTS;
    for (int64_t list = 0; list < lists; list++)
        if (weight->starts[list] > weight->starts[list + 1])
            return COPPICE_STARTS;
    for (int64_t list = 0; list < lists; list++) {
        const int64_t width = coppice_slab_width(weight, list / bands);
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

/* The code must say of itself what it was written for. */
static int32_t check_code(const coppice_weight *weight) {
#if COPPICE_X86
    const code_header *code = weight->code;
    if (code && (misaligned(code, 64) || code->magic != CODE_MAGIC || code->rows != weight->rows ||
                 code->cols != weight->cols || code->slab != weight->slab || code->entries != weight->entries))
        return COPPICE_CODE;
#else
    (void)weight;
#endif
    return COPPICE_OK;
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* One slab of x by one panel, widened values, and the sums of one panel, in floats. */
static int64_t panel_floats(const coppice_weight *weight) {
    const int64_t width = weight->cols < weight->slab ? weight->cols : weight->slab;
    const int64_t rows = coppice_bands(weight) * weight->height;
    return (width + rows) * COPPICE_PANEL_PIXELS + COPPICE_PANEL_SLACK + coppice_widened(weight);
}

int64_t coppice_matmul_scratch(const coppice_matmul_args *args) {
    if (!args)
        return COPPICE_NULL;
    const int32_t status = coppice_weight_sizes(&args->weight, 0);
    if (status != COPPICE_OK)
        return status;
    const coppice_weight *weight = &args->weight;
    const int64_t few = args->pixels < COPPICE_FEW_PIXELS ? args->pixels : COPPICE_FEW_PIXELS;
    const int64_t edges = 3 * COPPICE_SCRATCH_ALIGNMENT, whole = coppice_few_width(weight) * few;
    if (!coppice_is_packed(weight->layout)) {
        const int64_t tiled = weight->layout == COPPICE_DENSE ? coppice_tiled(weight) : 0;
        return larger(whole, panel_floats(weight)) * (int64_t)sizeof(float) + larger(coppice_grouped(weight), tiled) +
               COPPICE_GROUP_SLACK + edges;
    }
    const coppice_weight unpacked = coppice_unpacked(weight);
    const int64_t panels = panel_floats(&unpacked) * (int64_t)sizeof(float) + edges + coppice_unpacked_bytes(weight);
    return larger(whole * (int64_t)sizeof(float) + edges, panels);
}

int32_t coppice_matmul_check(const coppice_matmul_args *args) {
    if (!args)
        return COPPICE_NULL;
    const coppice_weight *weight = &args->weight;
    int32_t status = coppice_weight_check(weight, 0);
    if (status != COPPICE_OK)
        return status;
    if (!is_activation_type(args->type) || !coppice_type_size(args->arithmetic))
        return COPPICE_TYPE;
    if (!within(args->pixels, 0, size_max))
        return COPPICE_SIZE;
    status = check_epilogue(args->activation, args->lower, args->upper);
    if (status != COPPICE_OK)
        return status;
    if (misaligned(args->bias, sizeof(float)))
        return COPPICE_ALIGNMENT;
    status = check_code(weight);
    if (status != COPPICE_OK)
        return status;
    const size_t size = coppice_type_size(args->type);
    status = check_columns(args->x, args->type, args->x_stride, args->window, weight->cols, args->pixels);
    if (status == COPPICE_OK)
        status = check_matrix(args->y, size, weight->rows, args->pixels, args->y_stride);
    if (status == COPPICE_OK && args->residual)
        status = check_matrix(args->residual, size, weight->rows, args->pixels, args->residual_stride);
    return status == COPPICE_OK ? check_work(&args->work, coppice_matmul_scratch(args)) : status;
}

#if !COPPICE_X86

int64_t coppice_code_bytes(const coppice_weight *weight) {
    (void)weight;
    return COPPICE_ISA_MISSING;
}

int32_t coppice_code_write(const coppice_weight *weight, void *memory, int64_t bytes) {
    (void)weight, (void)memory, (void)bytes;
    return COPPICE_ISA_MISSING;
}

#endif
