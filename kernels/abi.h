/* coppice kernels: the public interface of the C library.
 *
 * The part between the two "cdef" marks is also what Python reads through cffi, so it holds plain C declarations only.
 * The library never allocates, prints, reads the environment or keeps a pointer. Every buffer is the caller's. */
#ifndef COPPICE_ABI_H
#define COPPICE_ABI_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define COPPICE_API __declspec(dllexport)
#elif defined(__GNUC__)
#define COPPICE_API __attribute__((visibility("default")))
#else
#define COPPICE_API
#endif

/* cdef begin */

/* Raised by one whenever a declaration below is added, or changes its meaning or its size. */
#define COPPICE_ABI_VERSION 5

/* What every function returns: zero, or one of the negative values. Nothing is written to y unless it is COPPICE_OK. */
typedef enum coppice_status {
    COPPICE_OK = 0,
    COPPICE_NULL = -1,             /* a pointer that is needed is NULL */
    COPPICE_SIZE = -2,             /* a size is negative or more than can be addressed */
    COPPICE_STRIDE = -3,           /* a row stride is shorter than its row, or more than can be addressed */
    COPPICE_ALIGNMENT = -4,        /* a pointer is not a multiple of its element's size */
    COPPICE_CLAMP = -5,            /* lower > upper, or one of them is NaN */
    COPPICE_SCRATCH = -6,          /* scratch is smaller than the scratch function asks for */
    COPPICE_LAYOUT = -7,           /* no such layout of weights, or not with this height */
    COPPICE_STARTS = -8,           /* starts does not rise from zero to entries */
    COPPICE_COLUMNS = -9,          /* columns of a band do not rise strictly, or leave their slab */
    COPPICE_ISA_UNKNOWN = -10,     /* no instruction set has this name */
    COPPICE_ISA_MISSING = -11,     /* this machine lacks the instruction set, or the library was built without it */
    COPPICE_VARIANT_UNKNOWN = -12, /* no variant has this number */
    COPPICE_TYPE = -13,            /* no such element type, or not in this place */
    COPPICE_WINDOW = -14,          /* the window does not give as many columns or pixels as there are */
    COPPICE_ACTIVATION = -15,      /* no such activation */
    COPPICE_SHARE = -16,           /* share is not in 0 .. shares - 1 */
    COPPICE_THREADS = -17,         /* the number of threads is not in 1 .. 256, or the system gives no more threads */
    COPPICE_BUSY = -18,            /* the pool is at work for another thread, or for a call of its own */
    COPPICE_CODE = -19,            /* the code was not written for this weight by this library */
    COPPICE_CHANNELS = -20,        /* a row of the result has no channel of x */
    COPPICE_KIND = -21,            /* no such kind of normalisation or pooling */
    COPPICE_EPSILON = -22,         /* epsilon is negative, infinite or NaN */
    COPPICE_LANES = -23            /* two rows of a window have the same lane, or one has none */
} coppice_status;

/* Instruction sets. Each architecture has its own list, in which a higher number includes the lower ones; the library
 * knows the one that it was built for. AVX2 stands for AVX2, FMA and F16C; AVX512 for AVX-512 F, BW, DQ and VL;
 * AVX512_VNNI adds VNNI, VBMI and VBMI2; of AMX the system must allow the process its tiles; NEON_FP16 stands for NEON
 * and FEAT_FP16 of Armv8.2. */
typedef enum coppice_isa {
    COPPICE_GENERIC = 0,
    COPPICE_AVX2 = 1, /* x86-64 */
    COPPICE_AVX512 = 2,
    COPPICE_AVX512_VNNI = 3,
    COPPICE_AVX512_BF16 = 4,
    COPPICE_AVX512_FP16 = 5,
    COPPICE_AMX_INT8 = 6,
    COPPICE_AMX_BF16 = 7,
    COPPICE_NEON = 1, /* 64-bit Arm */
    COPPICE_NEON_FP16 = 2
} coppice_isa;

/* Element types: IEEE 754 binary32 and binary16, bfloat16 (the upper half of a binary32), and signed bytes. */
typedef enum coppice_type { COPPICE_F32 = 0, COPPICE_F16 = 1, COPPICE_BF16 = 2, COPPICE_I8 = 3 } coppice_type;

typedef enum coppice_layout {
    COPPICE_DENSE = 0,
    COPPICE_SPARSE = 1,
    COPPICE_BITMASK = 2,
    COPPICE_N_OF_M = 3,
    COPPICE_SELL = 4
} coppice_layout;

/* What becomes of z = weight . x + bias + residual; exp and erf are those of real numbers, their error is in docs. */
typedef enum coppice_activation {
    COPPICE_CLAMP_ONLY = 0, /* z */
    COPPICE_HARDSWISH = 1,  /* z * min(max(z / 6 + 1/2, 0), 1) */
    COPPICE_SIGMOID = 2,    /* 1 / (1 + exp(-z)) */
    COPPICE_SILU = 3,       /* z / (1 + exp(-z)) */
    COPPICE_GELU = 4        /* z * (1 + erf(z / sqrt(2))) / 2 */
} coppice_activation;

/* How much of a call to do, and the memory to do it in: what every argument structure begins with.
 *
 * A call computes one share of its result, numbered 0 .. shares - 1; the shares together are all of it. They may run at
 * the same time in different threads, each with scratch of its own. Share i touches the same part of the result in
 * every call with the same sizes. */
typedef struct coppice_work {
    int32_t share;
    int32_t shares;
    void *scratch; /* any address */
    int64_t scratch_bytes;
} coppice_work;

/* A matrix [rows][cols] of weights. Its rows are taken `height` at a time as bands (of the last one some rows may lie
 * past the matrix: their values are there and take no part), its columns are cut into slabs of `slab` columns (the last
 * may be narrower; there is always one). An entry is one column of a band: `height` values. A slab holds the entries of
 * its first band, then of the next; the matrix holds its first slab, then the next. A slab of activations stays in
 * the first-level cache while all bands pass over it.
 *
 *   COPPICE_SPARSE  height 1 is CSR, 4, 8 and 16 are blocks of so many rows by one column
 *   COPPICE_DENSE   every column of every band has an entry; starts and columns are NULL; height 4, 8 or 16
 *
 *   starts[slabs * bands + 1]  entries of band b in slab s are starts[s * bands + b] up to starts[s * bands + b + 1]
 *   columns[entries]           column minus s * slab, strictly rising within a band of a slab
 *   values[entries][height]    of `type`; a value may be zero; what has no entry takes no part (0 * inf never arises)
 *   scales[rows]               the weight is value * scales[row]; NULL: all of them 1
 *
 * Three more layouts take less memory and are made for one to four pixels, where a product is as fast as its weight can
 * be read. They have no slabs; pointers that are not named with a layout are not looked at.
 *
 *   COPPICE_BITMASK  height 1. Column c of a row has an entry where bit c % 64 of word c / 64 of its mask is set
 *
 *     masks[rows][ceil(cols / 64)]  no bit past the last column is set
 *     starts[rows + 1]              entries of row r are starts[r] up to starts[r + 1], as many as its mask has bits
 *     values[entries]
 *
 *   COPPICE_N_OF_M   height 16. A row has `kept` entries in each `group` of columns, in rising order; cols is a
 *                    multiple of group. Entry i of a row is one of the kept * 16 / group in columns 16 * c up to
 *                    16 * c + 15, c = i * group / (kept * 16). Lane l of band b is row 16 * b + l
 *
 *     positions[bands][ceil(n / 8)][16]  n = cols / group * kept; of a lane, the four bits from 4 * (i % 8) on of word
 *                                        i / 8 are the column of its entry i, less 16 * c
 *     values[bands][n][16]               entries is bands * n
 *
 *   COPPICE_SELL     height 16, bytes alone: sliced ELLPACK with a moving window. An entry has four values of each lane
 *                    of its band, in columns that an offset reaches. A value of zero fills up and is no entry of the
 *                    matrix; the columns of the others rise strictly along a lane
 *
 *     starts[bands + 1]       entries of band b are starts[b] up to starts[b + 1]
 *     columns[entries]        of offset zero, divided by 64
 *     offsets[entries][16][4] value's column minus 64 * columns[entry]
 *     values[entries][16][4]
 *     lanes[rows]             row r is lane lanes[r] of the four bands from 4 * (r / 64) on (of fewer, behind the last
 *                             one), counted through: rows with as many entries may so share a band; NULL: r % 64
 *
 * rows, cols in 0 .. 2^31 - 1, cols of COPPICE_SELL up to 2^22; slab in 1 .. 65536; entries in 0 .. 2^32 - 1; group 2,
 * 4, 8 or 16; kept in 1 .. group - 1. */
typedef struct coppice_weight {
    int32_t layout; /* coppice_layout */
    int32_t type;   /* coppice_type */
    int64_t rows;
    int64_t cols;
    int64_t slab;
    int64_t height;
    int64_t entries;
    const uint32_t *starts;
    const uint16_t *columns;
    const void *values;
    const float *scales;
    const void *code; /* what coppice_code_write made of this weight, in memory that may be executed; or NULL */
    int32_t kept;
    int32_t group;
    const uint64_t *masks;
    const uint32_t *positions;
    const uint8_t *offsets;
    const uint8_t *lanes;
} coppice_weight;

/* The windows of a convolution over x[channels][height][width], as a matrix with a column for every (channel, ky, kx)
 * and a pixel for every (oy, ox), both in this order:
 *
 *   x[channel][oy * stride_y + ky * dilation_y - pad_y][ox * stride_x + kx * dilation_x - pad_x], zero outside of x
 *
 * Sizes, strides and dilations from 1, pads from 0, all below 2^31. */
typedef struct coppice_window {
    int64_t channels, height, width;
    int64_t row_stride, channel_stride; /* elements between rows, and between channels, of x */
    int64_t kernel_y, kernel_x, stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x;
    int64_t out_height, out_width;
} coppice_window;

/* y[rows][pixels] = clamp(activation(weight[rows][cols] . x[cols][pixels] + bias[rows] + residual[rows][pixels]))
 *
 * with clamp(z) = min(max(z, lower), upper). Sums are fp32 whatever the types. All matrices are row-major with unit
 * stride along pixels and a stride between rows in elements, >= pixels. bias and residual may be NULL. y may be the
 * residual itself (same pointer, same stride); otherwise y overlaps nothing. lower = -inf and upper = +inf clamp
 * nothing. NaN passes through. Pointers need their element's alignment only. weight must have passed
 * coppice_weight_validate once; it is not validated again.
 *
 * arithmetic allows a variant, and obliges none, to give up digits for speed. With n the entries of a row, m the sum of
 * the magnitudes of their products (before scales) and u = 2^-24:
 *
 *   COPPICE_F32   nothing is given up
 *   COPPICE_F16   where x and weight both are fp16, up to 128 entries at a time are multiplied and added in fp16; these
 *                 sums are added in fp32. The sum may be off by min(n, 128) * 2^-10 * m + n * u more, and where one of
 *                 those sums passes 65504 it is infinite or NaN
 *   COPPICE_BF16  x and weight, where they are wider, are rounded to bf16, to the nearest; products and sums are fp32.
 *                 The sum may be off by (2^-7 + n * u) * m more, and by what it is off where every value, product and
 *                 sum below 2^-126 in magnitude is zero
 *   COPPICE_I8    where the weight is bytes, each pixel of x is rounded to the nearest multiple of 1/127 of its
 *                 greatest magnitude (over all columns), or of 2^-126 if that is more, ties to even; products and
 *                 sums are integers. The sum may be off by half of that multiple times the sum of the magnitudes of
 *                 the row's values, and by (n + 3) * u * m, more. A pixel with NaN or infinity gives NaN
 */
typedef struct coppice_matmul_args {
    coppice_work work;
    coppice_weight weight;
    int32_t type; /* of x, residual and y: COPPICE_F32, COPPICE_F16 or COPPICE_BF16 */
    int32_t activation;
    int32_t arithmetic; /* coppice_type: what is allowed */
    int64_t pixels;
    const void *x;
    int64_t x_stride;
    const coppice_window *window; /* x as the windows of a convolution, x_stride unused; or NULL: x is a matrix */
    void *y;
    int64_t y_stride;
    const float *bias;
    const void *residual;
    int64_t residual_stride;
    float lower;
    float upper;
} coppice_matmul_args;

/* The gradients of a weight and a bias where that of the result is dy: of y = weight . x + bias,
 *
 *   gradient[entry][i] = sum over pixels of dy[row][pixel] * x[column][pixel]
 *   bias[row]          = sum over pixels of dy[row][pixel]
 *
 * for each value values[entry][i] of a weight, which is that of row and column, and in its layout. Of the weight only
 * layout, rows, cols, slab, height, entries, starts and columns are looked at; it has passed coppice_weight_validate
 * once. COPPICE_DENSE may have height 1 here, and then a slab up to 2^31 - 1: where that is not less than cols the
 * gradient is the plain matrix [rows][cols]. It is that of the weight itself, scales and rounding of values aside.
 *
 * dy and x are as y and x of matmul. Sums are fp32. With accumulate they are added to what gradient and bias hold.
 * Values of rows past the matrix become 0, with accumulate they stay. Shares are of bands. gradient and bias overlap
 * nothing. */
typedef struct coppice_weight_gradient_args {
    coppice_work work;
    coppice_weight weight;
    int32_t type; /* of dy and x: COPPICE_F32, COPPICE_F16 or COPPICE_BF16 */
    int32_t accumulate;
    int64_t pixels;
    const void *dy;
    int64_t dy_stride;
    const void *x;
    int64_t x_stride;
    const coppice_window *window; /* x as the windows of a convolution, x_stride unused; or NULL: x is a matrix */
    float *gradient;              /* [entries][height] */
    float *bias;                  /* [rows], or NULL */
} coppice_weight_gradient_args;

/* The convolution of each channel by kernels of its own: y[rows][out_height * out_width] =
 *
 *   clamp(activation(sum over ky, kx of weight[row][ky][kx] * x[source][..][..] + bias[row]))
 *
 * with the places in x as coppice_window has them and source = sources[row], or row itself where sources is NULL and
 * there are as many rows as channels. Several rows may have one source (a depth multiplier), quickest where they stand
 * side by side. Sums are fp32; the epilogue is that of matmul. y overlaps nothing. */
typedef struct coppice_depthwise_args {
    coppice_work work;
    coppice_window window;
    int32_t type; /* of x and y: COPPICE_F32, COPPICE_F16 or COPPICE_BF16 */
    int32_t activation;
    int64_t rows;
    const int32_t *sources; /* [rows], each in 0 .. channels - 1, or NULL */
    const float *weight;    /* [rows][kernel_y][kernel_x] */
    const float *bias;      /* [rows], or NULL */
    const void *x;
    void *y;
    int64_t y_stride;
    float lower;
    float upper;
} coppice_depthwise_args;

typedef enum coppice_norm_kind { COPPICE_LAYER_NORM = 0, COPPICE_RMS_NORM = 1 } coppice_norm_kind;

/* Normalises each token over its channels, in fp32:
 *
 *   COPPICE_LAYER_NORM  (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * weight + bias
 *   COPPICE_RMS_NORM    x / sqrt(mean(x^2) + epsilon) * weight + bias
 *
 * with weight[channels] and bias[channels], or NULL: 1 and 0. x and y are [channels][tokens], or [tokens][channels]
 * where token_rows is not 0; unit stride within a row. y may be x itself (same pointer, same stride, same type);
 * otherwise they do not overlap. */
typedef struct coppice_norm_args {
    coppice_work work; /* scratch is not looked at */
    int32_t kind;      /* coppice_norm_kind */
    int32_t type;      /* of x and y: COPPICE_F32, COPPICE_F16 or COPPICE_BF16 */
    int32_t token_rows;
    float epsilon; /* 0 or more, finite */
    int64_t channels;
    int64_t tokens;
    const void *x;
    int64_t x_stride;
    void *y;
    int64_t y_stride;
    const float *weight;
    const float *bias;
} coppice_norm_args;

/* y[row][i] = exp(scale * x[row][i]) / sum over j of exp(scale * x[row][j]), in fp32 and without overflow. -inf gives
 * 0; a row with NaN, with +inf, or with nothing but -inf is NaN throughout. y may be x itself (same pointer, same
 * stride); otherwise they do not overlap. */
typedef struct coppice_softmax_args {
    coppice_work work;
    int32_t type; /* of x and y: COPPICE_F32, COPPICE_F16 or COPPICE_BF16 */
    float scale;
    int64_t rows;
    int64_t pixels;
    const void *x;
    int64_t x_stride;
    void *y;
    int64_t y_stride;
} coppice_softmax_args;

typedef enum coppice_pooling_kind { COPPICE_MAX_POOLING = 0, COPPICE_AVERAGE_POOLING = 1 } coppice_pooling_kind;

/* y[channel][out_height * out_width]: the greatest or the mean of the elements of x in each window. An average divides
 * by the number of places of the window inside of x, or, with count_padding, inside of x with its padding, of which
 * there is after_y and after_x behind the last row and column. Without any the greatest is -inf, the mean NaN. A window
 * with NaN gives NaN. y does not overlap x. */
typedef struct coppice_pooling_args {
    coppice_work work;
    coppice_window window;
    int32_t kind; /* coppice_pooling_kind */
    int32_t type; /* of x and y: COPPICE_F32, COPPICE_F16 or COPPICE_BF16 */
    int32_t count_padding;
    int64_t after_y, after_x; /* 0 .. 2^31 - 1 */
    const void *x;
    void *y;
    int64_t y_stride;
} coppice_pooling_args;

/* y[rows][pixels] = clamp(activation(a * x + b * z)), in fp32, with the epilogue of matmul. z may be NULL: a * x. Each
 * matrix has a type of its own. y may be x or z itself (same pointer, same stride, same type); otherwise it overlaps
 * neither. */
typedef struct coppice_eltwise_args {
    coppice_work work;              /* scratch is not looked at */
    int32_t x_type, z_type, y_type; /* COPPICE_F32, COPPICE_F16 or COPPICE_BF16 */
    int32_t activation;
    float a, b;
    int64_t rows;
    int64_t pixels;
    const void *x;
    int64_t x_stride;
    const void *z;
    int64_t z_stride;
    void *y;
    int64_t y_stride;
    float lower;
    float upper;
} coppice_eltwise_args;

/* One implementation of a primitive. Strings live as long as the library. */
typedef struct coppice_variant {
    const char *primitive; /* "matmul" */
    const char *name;      /* unique within its primitive */
    int32_t isa;           /* coppice_isa */
    int32_t available;     /* 1 where this machine can run it and the limit allows it */
} coppice_variant;

COPPICE_API int32_t coppice_abi_version(void);

/* A sentence without its full stop, for any status. */
COPPICE_API const char *coppice_status_text(int32_t status);

/* Name of an instruction set, NULL past the last: counting up from 0 enumerates them. */
COPPICE_API const char *coppice_isa_name(int32_t isa);

/* The highest instruction set that this machine has and the limit allows. */
COPPICE_API int32_t coppice_isa_active(void);

/* Allows no instruction set above the named one, in this process, from now on; NULL lifts the limit. */
COPPICE_API int32_t coppice_isa_limit(const char *name);

/* Checks a weight from an untrusted source, reading all that its layout has but scales, and values of COPPICE_SELL
 * alone. */
COPPICE_API int32_t coppice_weight_validate(const coppice_weight *weight);

/* Straight-line machine code of a sparse weight of height 1: no indices, no loops, all rows of a chunk in registers. It
 * holds the values too, scaled and in fp32. Only AVX-512 has it; elsewhere both functions give COPPICE_ISA_MISSING. The
 * caller writes it into `bytes` bytes of memory (a multiple of 64), makes that executable, and sets weight.code;
 * variants that cannot use it do the same product without. It holds no addresses: it may be written to a file and
 * mapped. */
COPPICE_API int64_t coppice_code_bytes(const coppice_weight *weight);
COPPICE_API int32_t coppice_code_write(const coppice_weight *weight, void *memory, int64_t bytes);

/* Bytes of scratch that every variant of matmul can do with for one share of these sizes (of the pointers only window
 * is looked at), or a negative status. */
COPPICE_API int64_t coppice_matmul_scratch(const coppice_matmul_args *args);

/* Runs the best available variant. */
COPPICE_API int32_t coppice_matmul(const coppice_matmul_args *args);

/* The same for the gradients of its weight and bias. */
COPPICE_API int64_t coppice_weight_gradient_scratch(const coppice_weight_gradient_args *args);
COPPICE_API int32_t coppice_weight_gradient(const coppice_weight_gradient_args *args);

/* The same for the convolution of each channel by itself. */
COPPICE_API int64_t coppice_depthwise_scratch(const coppice_depthwise_args *args);
COPPICE_API int32_t coppice_depthwise(const coppice_depthwise_args *args);

/* And for the other primitives; norm and eltwise need no scratch. */
COPPICE_API int32_t coppice_norm(const coppice_norm_args *args);
COPPICE_API int64_t coppice_softmax_scratch(const coppice_softmax_args *args);
COPPICE_API int32_t coppice_softmax(const coppice_softmax_args *args);
COPPICE_API int64_t coppice_pooling_scratch(const coppice_pooling_args *args);
COPPICE_API int32_t coppice_pooling(const coppice_pooling_args *args);
COPPICE_API int32_t coppice_eltwise(const coppice_eltwise_args *args);

/* All variants of all primitives: numbers 0 .. count - 1, within a primitive from the reference to the fastest. */
COPPICE_API int32_t coppice_variant_count(void);
COPPICE_API int32_t coppice_variant_info(int32_t variant, coppice_variant *info);

/* Runs one variant; args points to the argument structure of its primitive. */
COPPICE_API int32_t coppice_variant_run(int32_t variant, const void *args);

/* Threads that do the shares of a call side by side: share i is always thread i's, 0 the caller's. Between calls they
 * watch for the next one for some microseconds, then sleep. A pool serves one caller at a time; pools are independent
 * of each other and of OpenMP. It lives in memory of the caller, coppice_pool_bytes(threads) at any address that is a
 * multiple of 64, until it has been stopped. */
typedef struct coppice_pool coppice_pool;

COPPICE_API int64_t coppice_pool_bytes(int32_t threads);
COPPICE_API int32_t coppice_pool_start(coppice_pool *memory, int64_t bytes, int32_t threads);
COPPICE_API int32_t coppice_pool_stop(coppice_pool *pool);

/* Runs one variant in all threads. work.share and work.shares are not looked at; each thread gets its part of the
 * scratch, which must hold as many times what the scratch function asks for. */
COPPICE_API int32_t coppice_pool_run(coppice_pool *pool, int32_t variant, const void *args);

/* cdef end */

#ifdef __cplusplus
}
#endif

#endif
