/* spmm_f32 for vector registers: one algorithm, compiled once per instruction set.
 *
 * The pixels are cut into panels of at most COPPICE_PANEL_PIXELS. For one panel and one slab of columns, all rows of
 * the weight pass over the same slab x panel block of x, which is first copied into scratch where it is contiguous,
 * aligned and padded to whole vectors: it then stays in the first- and second-level cache whatever the stride of x. A row
 * holds its panel in registers and adds value * x[column] entry by entry; between slabs it rests in y.
 *
 * The including file defines `vector`, LANES, PANEL_VECTORS (the most vectors of a panel) and the operations used
 * below, then calls spmm_f32_vector. */
#include "../kernels.h"

#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* A block of x: the columns of one slab by the pixels of one panel, row-major, whole vectors may be read. */
typedef struct block {
    const float *x;
    int64_t stride;
} block;

/* The part of y that a panel covers: `full` whole vectors from pixel `first` on, then `tail` < LANES single pixels. */
typedef struct panel {
    int64_t first;
    int full;
    int tail;
} panel;

ALWAYS_INLINE vector load_part(const float *from, const panel *part, int index) {
    return index < part->full ? load(from + index * LANES) : load_tail(from + index * LANES, part->tail);
}

ALWAYS_INLINE void store_part(float *to, const panel *part, int index, vector value) {
    if (index < part->full)
        store(to + index * LANES, value);
    else
        store_tail(to + index * LANES, part->tail, value);
}

/* All rows over one block. `vectors` (of the panel) and `chains` (independent sums per vector, against the latency of
 * the addition) are constants wherever this is called, so `sum` lives in registers. */
ALWAYS_INLINE void rows_over_block(const int vectors, const int chains, const coppice_spmm_f32_args *args, int64_t slab,
                                   block from, const panel *part) {
    const coppice_csr_f32 *weight = &args->weight;
    const uint32_t *starts = weight->starts + slab * weight->rows;
    const int begins = slab == 0, ends = slab + 1 == coppice_slabs(weight);
    const vector lower = broadcast(args->lower), upper = broadcast(args->upper);
    const uint16_t *columns = weight->columns; const float *values = weight->values; const int64_t rows = weight->rows;
    const float *biases=args->bias, *residuals = args->residual; float *ys=args->y+part->first; const int64_t y_stride=args->y_stride;
    const panel local = *part; part = &local;
    for (int64_t row = 0; row < rows; row++) {
        float *y = ys + row * y_stride;
        vector sum[4][PANEL_VECTORS];
        for (int v = 0; v < vectors; v++)
            for (int chain = 1; chain < chains; chain++)
                sum[chain][v] = zero();
        if (!begins) {
            for (int v = 0; v < vectors; v++)
                sum[0][v] = load_part(y, part, v);
        } else {
            const vector bias = biases ? broadcast(biases[row]) : zero();
            for (int v = 0; v < vectors; v++)
                sum[0][v] = bias;
            if (residuals) {
                const float *residual = residuals + row * args->residual_stride + part->first;
                for (int v = 0; v < vectors; v++)
                    sum[0][v] = add(bias, load_part(residual, part, v));
            }
        }

#define ADD_ENTRY(index, chain)                                                                                        \
    do {                                                                                                               \
        const vector value = broadcast(values[index]);                                                         \
        const float *x = from.x + columns[index] * from.stride;                                                \
        for (int v = 0; v < vectors; v++)                                                                              \
            sum[chain][v] = multiply_add(value, load(x + v * LANES), sum[chain][v]);                                   \
    } while (0)

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
#undef ADD_ENTRY

        for (int v = 0; v < vectors; v++) {
            vector total = sum[0][v];
            for (int chain = 1; chain < chains; chain++)
                total = add(total, sum[chain][v]);
            if (ends)
                total = minimum(upper, maximum(lower, total));
            store_part(y, part, v, total);
        }
    }
}

/* Copies the slab's columns of x from pixel `first` on into `to`, each padded with zeros to whole vectors. */
static block pack(const float *x, int64_t x_stride, int64_t columns, const panel *part, float *to) {
    const int vectors = part->full + (part->tail > 0);
    const int64_t stride = (int64_t)vectors * LANES;
    for (int64_t column = 0; column < columns; column++) {
        const float *from = x + column * x_stride;
        float *row = to + column * stride;
        for (int v = 0; v < vectors; v++)
            store(row + v * LANES, load_part(from, part, v));
    }
    return (block){to, stride};
}

/* Whether rows can pass over x where it is: in whole aligned vectors, and so few columns that they do not push each
 * other out of a first-level cache of 64 sets and 8 ways. Copying would then cost more than it saves. */
static int stays_in_cache(const float *x, int64_t x_stride, int64_t columns, const panel *part) {
    enum { line = 64 / sizeof(float), sets = 64, ways = 8, most = 64 };
    if (part->tail || (uintptr_t)x % 64 || x_stride % line || columns > most)
        return 0;
    const int64_t pitch = x_stride / line, repeat = pitch & -pitch;
    return columns * (repeat < sets ? repeat : sets) <= sets * ways;
}

static void panel_over_slab(const coppice_spmm_f32_args *args, int64_t slab, block from, const panel *part) {
#define CASE(vectors, chains)                                                                                          \
    case vectors:                                                                                                      \
        rows_over_block(vectors, chains, args, slab, from, part);                                                      \
        break
    switch (part->full + (part->tail > 0)) { PANEL_CASES }
#undef CASE
}

/* Matrix times vector: four sums against the latency of the addition. */
static void one_pixel(const coppice_spmm_f32_args *args) {
    const coppice_csr_f32 *weight = &args->weight;
    const uint32_t *starts = weight->starts;
    const uint16_t *columns = weight->columns;
    const float *values = weight->values;
    const int64_t slabs = coppice_slabs(weight), rows = weight->rows, x_stride = args->x_stride;
    for (int64_t slab = 0; slab < slabs; slab++, starts += rows) {
        const float *x = args->x + slab * weight->slab * x_stride;
        for (int64_t row = 0; row < rows; row++) {
            float *y = args->y + row * args->y_stride;
            float sum[4] = {0};
            if (slab > 0) {
                sum[0] = *y;
            } else {
                sum[0] = args->bias ? args->bias[row] : 0.0f;
                sum[0] += args->residual ? args->residual[row * args->residual_stride] : 0.0f;
            }
            size_t entry = starts[row];
            const size_t end = starts[row + 1];
            for (; end - entry >= 4; entry += 4)
                for (int chain = 0; chain < 4; chain++)
                    sum[chain] += values[entry + chain] * x[columns[entry + chain] * x_stride];
            for (; entry < end; entry++)
                sum[0] += values[entry] * x[columns[entry] * x_stride];
            float total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
            if (slab + 1 == slabs) {
                total = total < args->lower ? args->lower : total;
                total = total > args->upper ? args->upper : total;
            }
            *y = total;
        }
    }
}

static void spmm_f32_vector(const coppice_spmm_f32_args *args) {
    if (args->pixels == 1) {one_pixel(args); return;}
    const coppice_csr_f32 *weight = &args->weight;
    const uintptr_t scratch = (uintptr_t)args->scratch + COPPICE_SCRATCH_ALIGNMENT - 1;
    float *packed = (float *)(scratch - scratch % COPPICE_SCRATCH_ALIGNMENT);
    const int64_t slabs = coppice_slabs(weight);
    const int64_t vectors = (args->pixels + LANES - 1) / LANES;
    const int64_t panels = (vectors + PANEL_VECTORS - 1) / PANEL_VECTORS;
    for (int64_t done = 0, number = 0; number < panels; number++) {
        const int64_t first = done * LANES, width = (vectors - done + panels - number - 1) / (panels - number);
        const int64_t rest = args->pixels - first;
        const panel part = {first, (int)(rest < width * LANES ? rest / LANES : width),
                            (int)(rest < width * LANES ? rest % LANES : 0)};
        for (int64_t slab = 0; slab < slabs; slab++) {
            const int64_t column = slab * weight->slab, left = weight->cols - column;
            const int64_t columns = left < weight->slab ? left : weight->slab;
            const float *x = args->x + column * args->x_stride + first;
            block from = {x, args->x_stride};
            if (!stays_in_cache(x, args->x_stride, columns, &part))
                from = pack(x, args->x_stride, columns, &part, packed);
            panel_over_slab(args, slab, from, &part);
        }
        done += width;
    }
}
