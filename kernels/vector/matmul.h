/* spmm_f32 for vector registers: one algorithm, compiled once per instruction set.
 *
 * The pixels are cut into panels of at most COPPICE_PANEL_PIXELS. For one panel and one slab of columns, all rows of
 * the weight pass over the same slab x panel block of x, which stays in the first- and second-level cache meanwhile. A
 * row holds its panel in registers and adds value * x[column] entry by entry; between slabs it rests in y.
 *
 * The including file defines `vector`, LANES, PANEL_VECTORS (vectors of the widest panel), PANEL_CASES (see
 * panel_over_slab) and the operations used below; then it calls spmm_f32_vectors. */
#include "../kernels.h"

#include <stddef.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* The columns of one slab by the pixels of one panel, row-major; whole vectors may be read. */
typedef struct block {
    const float *x;
    int64_t stride;
} block;

/* Pixels from `first` on, in `vectors` vectors; of the last one only `tail` < LANES lanes count unless tail is zero. */
typedef struct panel {
    int64_t first;
    int vectors;
    int tail;
} panel;

ALWAYS_INLINE vector load_part(const float *from, int vectors, int tail, int index) {
    return tail && index + 1 == vectors ? load_tail(from + index * LANES, tail) : load(from + index * LANES);
}

ALWAYS_INLINE void store_part(float *to, int vectors, int tail, int index, vector value) {
    if (tail && index + 1 == vectors)
        store_tail(to + index * LANES, tail, value);
    else
        store(to + index * LANES, value);
}

/* All rows over one block. `vectors` and `tail` are the panel's, `chains` is the number of independent sums per vector
 * (against the latency of the addition). They are constants wherever this is called, but for a tail that is not zero,
 * so `sum` lives in registers. What a store to y might change is read before the loop. */
ALWAYS_INLINE void rows_over_block(const int vectors, const int tail, const int chains,
                                   const coppice_spmm_f32_args *args, int64_t slab, block from, int64_t first) {
    const coppice_csr_f32 *weight = &args->weight;
    const int64_t rows = weight->rows, y_stride = args->y_stride, residual_stride = args->residual_stride;
    const uint32_t *starts = weight->starts + slab * rows;
    const uint16_t *columns = weight->columns;
    const float *values = weight->values, *bias = args->bias;
    const float *residual = args->residual ? args->residual + first : NULL;
    float *first_y = args->y + first;
    const vector lower = broadcast(args->lower), upper = broadcast(args->upper);
    const int first_slab = slab == 0, last_slab = slab + 1 == coppice_slabs(weight);

#define ADD_ENTRY(entry, chain)                                                                                        \
    do {                                                                                                               \
        const vector value = broadcast(values[entry]);                                                                 \
        const float *x = from.x + columns[entry] * from.stride;                                                        \
        for (int v = 0; v < vectors; v++)                                                                              \
            sum[chain][v] = multiply_add(value, load(x + v * LANES), sum[chain][v]);                                   \
    } while (0)

    for (int64_t row = 0; row < rows; row++) {
        float *y = first_y + row * y_stride;
        vector sum[4][PANEL_VECTORS];
        for (int chain = 1; chain < chains; chain++)
            for (int v = 0; v < vectors; v++)
                sum[chain][v] = zero();
        if (!first_slab) {
            for (int v = 0; v < vectors; v++)
                sum[0][v] = load_part(y, vectors, tail, v);
        } else {
            const vector start = bias ? broadcast(bias[row]) : zero();
            for (int v = 0; v < vectors; v++)
                sum[0][v] = start;
            if (residual)
                for (int v = 0; v < vectors; v++)
                    sum[0][v] = add(start, load_part(residual + row * residual_stride, vectors, tail, v));
        }
        size_t entry = starts[row];
        const size_t end = starts[row + 1];
        for (; end - entry >= 4; entry += 4) {
            ADD_ENTRY(entry, 0);
            ADD_ENTRY(entry + 1, 1 % chains);
            ADD_ENTRY(entry + 2, 2 % chains);
            ADD_ENTRY(entry + 3, 3 % chains);
        }
        switch (end - entry) {
        case 3:
            ADD_ENTRY(entry + 2, 2 % chains);
            /* fall through */
        case 2:
            ADD_ENTRY(entry + 1, 1 % chains);
            /* fall through */
        case 1:
            ADD_ENTRY(entry, 0);
        }
        for (int v = 0; v < vectors; v++) {
            vector total = sum[0][v];
            for (int chain = 1; chain < chains; chain++)
                total = add(total, sum[chain][v]);
            if (last_slab)
                total = minimum(upper, maximum(lower, total));
            store_part(y, vectors, tail, v, total);
        }
    }
#undef ADD_ENTRY
}

/* PANEL_CASES is a CASE(vectors, chains) for every width of a panel. */
static void panel_over_slab(const coppice_spmm_f32_args *args, int64_t slab, block from, panel part) {
#define CASE(vectors, chains)                                                                                          \
    case vectors:                                                                                                      \
        if (part.tail)                                                                                                 \
            rows_over_block(vectors, part.tail, chains, args, slab, from, part.first);                                 \
        else                                                                                                           \
            rows_over_block(vectors, 0, chains, args, slab, from, part.first);                                         \
        break;
    switch (part.vectors) { PANEL_CASES }
#undef CASE
}

/* Whether rows can pass over x where it is: in whole aligned vectors, without its rows pushing each other out of a
 * first-level cache of 64 sets and 8 ways, and so few of them, or each used by so few entries, that a copy costs more
 * than it saves. */
static int fit_in_place(const coppice_spmm_f32_args *args, const float *x, int64_t columns, panel part) {
    enum { line_bytes = 64, line = line_bytes / sizeof(float), sets = 64, ways = 8, few_columns = 64, few_uses = 12 };
    if (part.tail || (uintptr_t)x % line_bytes || args->x_stride % line)
        return 0;
    const int64_t pitch = args->x_stride / line, sets_apart = pitch & -pitch;
    if (columns * (sets_apart < sets ? sets_apart : sets) > sets * ways)
        return 0;
    return columns <= few_columns || args->weight.entries < few_uses * args->weight.cols;
}

/* Copies `columns` rows of x to `to`, where they are contiguous, aligned and padded with zeros to whole vectors. */
static block pack(const float *x, int64_t x_stride, int64_t columns, panel part, float *to) {
    const int64_t stride = (int64_t)part.vectors * LANES;
    for (int64_t column = 0; column < columns; column++)
        for (int v = 0; v < part.vectors; v++)
            store(to + column * stride + v * LANES, load_part(x + column * x_stride, part.vectors, part.tail, v));
    return (block){to, stride};
}

/* Matrix times vector. */
static void one_pixel(const coppice_spmm_f32_args *args) {
    const coppice_csr_f32 *weight = &args->weight;
    const uint16_t *columns = weight->columns;
    const float *values = weight->values;
    const int64_t slabs = coppice_slabs(weight), rows = weight->rows, x_stride = args->x_stride;
    for (int64_t row = 0; row < rows; row++) {
        float sum[4] = {args->bias ? args->bias[row] : 0.0f};
        sum[0] += args->residual ? args->residual[row * args->residual_stride] : 0.0f;
        for (int64_t slab = 0; slab < slabs; slab++) {
            const int64_t first = slab * weight->slab;
            size_t entry = weight->starts[slab * rows + row];
            const size_t end = weight->starts[slab * rows + row + 1];
            for (; end - entry >= 4; entry += 4)
                for (size_t chain = 0; chain < 4; chain++)
                    sum[chain] += values[entry + chain] * args->x[(first + columns[entry + chain]) * x_stride];
            for (; entry < end; entry++)
                sum[0] += values[entry] * args->x[(first + columns[entry]) * x_stride];
        }
        const float total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        const float raised = total < args->lower ? args->lower : total;
        args->y[row * args->y_stride] = raised > args->upper ? args->upper : raised;
    }
}

static void spmm_f32_vectors(const coppice_spmm_f32_args *args) {
    const coppice_csr_f32 *weight = &args->weight;
    if (weight->rows == 0 || args->pixels == 0)
        return;
    if (args->pixels == 1) {
        one_pixel(args);
        return;
    }
    const uintptr_t scratch = (uintptr_t)args->scratch + COPPICE_SCRATCH_ALIGNMENT - 1;
    float *packed = (float *)(scratch - scratch % COPPICE_SCRATCH_ALIGNMENT);
    const int64_t slabs = coppice_slabs(weight);
    const int64_t vectors = (args->pixels + LANES - 1) / LANES;
    const int64_t panels = (vectors + PANEL_VECTORS - 1) / PANEL_VECTORS;
    for (int64_t number = 0; number < panels; number++) {
        const int64_t first = number * vectors / panels * LANES, next = (number + 1) * vectors / panels * LANES;
        const int64_t pixels = (next < args->pixels ? next : args->pixels) - first;
        const panel part = {first, (int)((pixels + LANES - 1) / LANES), (int)(pixels % LANES)};
        for (int64_t slab = 0; slab < slabs; slab++) {
            const int64_t column = slab * weight->slab, rest = weight->cols - column;
            const int64_t width = rest < weight->slab ? rest : weight->slab;
            block from = {packed, 0}; /* stays empty where the matrix has no column */
            if (width > 0) {
                const float *x = args->x + column * args->x_stride + first;
                from = fit_in_place(args, x, width, part) ? (block){x, args->x_stride}
                                                          : pack(x, args->x_stride, width, part, packed);
            }
            panel_over_slab(args, slab, from, part);
        }
    }
}
