/* What the C files of the library share; not installed and not part of the interface. */
#ifndef COPPICE_KERNELS_H
#define COPPICE_KERNELS_H

#include "abi.h"

#include <stddef.h>

#ifndef COPPICE_X86
#define COPPICE_X86 0
#endif

#ifndef COPPICE_X86_DOTS
#define COPPICE_X86_DOTS 0
#endif

#ifndef COPPICE_X86_FP16
#define COPPICE_X86_FP16 0
#endif

#ifndef COPPICE_X86_AMX
#define COPPICE_X86_AMX 0
#endif

/* Whether what AVX512-FP16 and AMX do is computed without them, for the check program. */
#ifndef COPPICE_EMULATE
#define COPPICE_EMULATE 0
#endif

#ifndef COPPICE_ARM
#define COPPICE_ARM 0
#endif

/* Panels of activations are at most this many pixels wide. */
#define COPPICE_PANEL_PIXELS 192

/* A row of a panel may be written this many pixels past its end: whole vectors. */
#define COPPICE_PANEL_SLACK 16

/* So few pixels are multiplied by bands with rows along the vector, x being at hand as a whole. */
#define COPPICE_FEW_PIXELS 4

/* Values of a narrow type are widened about so many at a time. */
#define COPPICE_WIDENED 4096

/* Where products are added by twos or fours (GROUP_MOST), weights are brought together so many bytes at a time; what
 * makes the last group of x whole takes no more than GROUP_SLACK. */
#define COPPICE_GROUPED     16384
#define COPPICE_GROUP_MOST  4
#define COPPICE_GROUP_SLACK 512

/* The most rows of dy that weight_gradient lays out together, and columns of a block of x where it may choose. */
#define COPPICE_GRADIENT_ROWS    8
#define COPPICE_GRADIENT_COLUMNS 128

/* Panels in scratch start on a cache line. */
#define COPPICE_SCRATCH_ALIGNMENT 64

/* A band in scratch (band.h) holds so many output rows at least. */
#define COPPICE_BAND_ROWS 8

/* The widest slab: columns are stored in 16 bits. */
#define COPPICE_SLAB_MAX 65536

/* Variants: called with arguments that passed coppice_<primitive>_check. */
#define COPPICE_VARIANT(primitive, name, isa) void coppice_##primitive##_##name(const coppice_##primitive##_args *args);
#include "variants.def"
#undef COPPICE_VARIANT

/* Bytes of the argument structure of a variant, which begins with a coppice_work; 0 where there is no such variant. */
size_t coppice_args_size(int32_t variant);

/* The largest of them. */
#define COPPICE_ARGS_MOST 512

/* The sizes of a weight, and everything about it but its entries. With `plain` a dense one may have height 1 and then
 * slabs of any width. */
int32_t coppice_weight_sizes(const coppice_weight *weight, int plain);
int32_t coppice_weight_check(const coppice_weight *weight, int plain);

/* Everything about the arguments but the entries of the weight. */
int32_t coppice_matmul_check(const coppice_matmul_args *args);
int32_t coppice_weight_gradient_check(const coppice_weight_gradient_args *args);

/* Everything about the arguments. */
int32_t coppice_depthwise_check(const coppice_depthwise_args *args);
int32_t coppice_norm_check(const coppice_norm_args *args);
int32_t coppice_softmax_check(const coppice_softmax_args *args);
int32_t coppice_pooling_check(const coppice_pooling_args *args);
int32_t coppice_eltwise_check(const coppice_eltwise_args *args);

/* Slabs and bands of a matrix whose sizes are valid. There is at least one slab, so that the epilogue always runs. */
static inline int64_t coppice_slabs(const coppice_weight *weight) {
    return weight->cols <= weight->slab ? 1 : (weight->cols + weight->slab - 1) / weight->slab;
}

static inline int64_t coppice_bands(const coppice_weight *weight) {
    return (weight->rows + weight->height - 1) / weight->height;
}

/* Columns of one slab. */
static inline int64_t coppice_slab_width(const coppice_weight *weight, int64_t slab) {
    const int64_t rest = weight->cols - slab * weight->slab;
    return rest < weight->slab ? rest : weight->slab;
}

/* The first entry of a band in a slab. */
static inline size_t coppice_first_entry(const coppice_weight *weight, int64_t slab, int64_t band) {
    const int64_t bands = coppice_bands(weight);
    if (weight->layout == COPPICE_SPARSE)
        return weight->starts[slab * bands + band];
    return (size_t)(slab * weight->slab * bands + band * coppice_slab_width(weight, slab));
}

static inline size_t coppice_entries(const coppice_weight *weight, int64_t slab, int64_t band) {
    if (weight->layout == COPPICE_DENSE)
        return (size_t)coppice_slab_width(weight, slab);
    const uint32_t *starts = weight->starts + slab * coppice_bands(weight) + band;
    return starts[1] - starts[0];
}

/* The most values that are widened at a time: fewer than COPPICE_WIDENED and one more band. */
static inline int64_t coppice_widened(const coppice_weight *weight) {
    const int64_t columns = weight->cols < weight->slab ? weight->cols : weight->slab;
    return weight->type == COPPICE_F32 ? 0 : COPPICE_WIDENED + columns * weight->height + COPPICE_PANEL_SLACK;
}

/* Bytes of scratch for weights by twos and fours: less than COPPICE_GROUPED and one more band. */
static inline int64_t coppice_grouped(const coppice_weight *weight) {
    const int64_t columns = weight->cols < weight->slab ? weight->cols : weight->slab;
    const int64_t band = weight->height * (int64_t)sizeof(uint16_t) * (columns + 2 * COPPICE_GROUP_MOST);
    return COPPICE_GROUPED + band + COPPICE_SCRATCH_ALIGNMENT;
}

/* Dense weights may meet x in tiles of 1 KB: so many of them, at most, are sixteen rows of so many columns in two bytes
 * each. Bytes of scratch for that: three such rows of tiles, and the columns of a panel. */
static inline int64_t coppice_tile_steps(int64_t columns) {
    return columns / 32 + 1;
}

static inline int64_t coppice_tiled(const coppice_weight *weight) {
    enum { rows_of_tiles = 3, tile = 1024, tile_columns = 32 };
    const int64_t steps = coppice_tile_steps(weight->cols < weight->slab ? weight->cols : weight->slab);
    return (rows_of_tiles * steps + 1) * tile + steps * tile_columns * (int64_t)sizeof(uint16_t) * COPPICE_PANEL_PIXELS;
}

/* Columns of x that weight_gradient has at hand at a time, and pixels of them: a quarter of a megabyte, or four vectors
 * of the widest kind where columns are many. */
static inline int64_t coppice_gradient_columns(const coppice_weight *weight) {
    const int64_t most = weight->layout == COPPICE_DENSE ? COPPICE_GRADIENT_COLUMNS : weight->cols;
    const int64_t columns = weight->slab < most ? weight->slab : most;
    return columns < weight->cols ? columns : weight->cols;
}

static inline int64_t coppice_gradient_pixels(const coppice_weight *weight) {
    enum { floats = 65536, least = 64, most = 512, whole = 16 };
    const int64_t fitting = floats / (coppice_gradient_columns(weight) + 1) / whole * whole;
    return fitting < least ? least : fitting < most ? fitting : most;
}

/* Everything that bands first .. end - 1 have in a gradient, set to zero. */
void coppice_gradient_clear(const coppice_weight_gradient_args *args, int64_t first_band, int64_t end_band);

/* What a share does of a result of `rows` rows of `lines` parts each: whole rows where there are enough of them, else
 * its lines of every row. */
typedef struct coppice_part {
    int64_t row, end_row, line, end_line;
} coppice_part;

static inline coppice_part coppice_part_of(const coppice_work *work, int64_t rows, int64_t lines) {
    const int64_t share = work->share, shares = work->shares;
    if (rows >= shares)
        return (coppice_part){rows * share / shares, rows * (share + 1) / shares, 0, lines};
    return (coppice_part){0, rows, lines * share / shares, lines * (share + 1) / shares};
}

/* Bytes of an element; 0 for what is no type. */
static inline size_t coppice_type_size(int32_t type) {
    switch (type) {
    case COPPICE_F32:
        return sizeof(float);
    case COPPICE_F16:
    case COPPICE_BF16:
        return sizeof(uint16_t);
    case COPPICE_I8:
        return sizeof(int8_t);
    default:
        return 0;
    }
}

/* An element as fp32, and back, rounded to nearest even; NaN stays NaN. */
float coppice_load(int32_t type, const void *data, int64_t index);
void coppice_store(int32_t type, void *data, int64_t index, float value);

/* clamp(activation(z)) as abi.h defines it. */
float coppice_activate(int32_t activation, float lower, float upper, float z);

#endif
