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

/* Raised by one whenever a declaration below changes its meaning or its size. */
#define COPPICE_ABI_VERSION 1

/* What every function returns: zero, or one of the negative values. Nothing is written to y unless it is COPPICE_OK. */
typedef enum coppice_status {
    COPPICE_OK = 0,
    COPPICE_NULL = -1,            /* a pointer that is needed is NULL */
    COPPICE_SIZE = -2,            /* a size is negative or more than can be addressed */
    COPPICE_STRIDE = -3,          /* a row stride is shorter than its row, or more than can be addressed */
    COPPICE_ALIGNMENT = -4,       /* a pointer is not a multiple of its element's size */
    COPPICE_CLAMP = -5,           /* lower > upper, or one of them is NaN */
    COPPICE_SCRATCH = -6,         /* scratch is smaller than the scratch function asks for */
    COPPICE_LAYOUT = -7,          /* this library does not know the weight's layout */
    COPPICE_STARTS = -8,          /* starts does not rise from zero to entries */
    COPPICE_COLUMNS = -9,         /* columns of a row do not rise strictly, or leave their slab */
    COPPICE_ISA_UNKNOWN = -10,    /* no instruction set has this name */
    COPPICE_ISA_MISSING = -11,    /* this machine lacks the instruction set, or the library was built without it */
    COPPICE_VARIANT_UNKNOWN = -12 /* no variant has this number */
} coppice_status;

/* Instruction sets. Within one architecture a higher number includes the lower ones. */
typedef enum coppice_isa { COPPICE_GENERIC = 0, COPPICE_AVX2 = 1, COPPICE_AVX512 = 2 } coppice_isa;

typedef enum coppice_layout { COPPICE_SLAB_CSR = 1 } coppice_layout;

/* Sparse matrix [rows][cols] of fp32 values, layout COPPICE_SLAB_CSR: the columns are cut into slabs of `slab` columns
 * (the last may be narrower; there is always at least one), and each slab is a CSR matrix of its own. One slab
 * (slab >= cols) is ordinary CSR. A slab of activations stays in the first-level cache while all rows pass over it.
 *
 *   starts[slabs * rows + 1]  entries of row r in slab s are starts[s * rows + r] up to starts[s * rows + r + 1]
 *   columns[entries]          column minus s * slab, strictly rising within a row of a slab
 *   values[entries]           an entry may be zero; what has no entry takes no part (0 * inf never arises from it)
 *
 * rows, cols in 0 .. 2^31 - 1; slab in 1 .. 65536; entries in 0 .. 2^32 - 1. */
typedef struct coppice_csr_f32 {
    int32_t layout;
    int64_t rows;
    int64_t cols;
    int64_t slab;
    int64_t entries;
    const uint32_t *starts;
    const uint16_t *columns;
    const float *values;
} coppice_csr_f32;

/* y[rows][pixels] = min(max(weight[rows][cols] . x[cols][pixels] + bias[rows] + residual[rows][pixels], lower), upper)
 *
 * All matrices are row-major with unit stride along pixels and a stride between rows in elements, >= pixels. bias and
 * residual may be NULL. y may be the residual itself (same pointer, same stride); otherwise y overlaps nothing.
 * lower = -inf and upper = +inf means no activation. NaN passes through. Pointers need their element's alignment only.
 * weight must have passed coppice_csr_validate once; it is not validated again. */
typedef struct coppice_spmm_f32_args {
    coppice_csr_f32 weight;
    int64_t pixels;
    const float *x;
    int64_t x_stride;
    float *y;
    int64_t y_stride;
    const float *bias;
    const float *residual;
    int64_t residual_stride;
    float lower;
    float upper;
    void *scratch;
    int64_t scratch_bytes;
} coppice_spmm_f32_args;

/* One implementation of a primitive. Strings live as long as the library. */
typedef struct coppice_variant {
    const char *primitive; /* "spmm_f32" */
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

/* Checks a matrix from an untrusted source, reading starts[slabs * rows + 1] and columns[entries]. */
COPPICE_API int32_t coppice_csr_validate(const coppice_csr_f32 *weight);

/* Bytes of scratch that every variant of spmm_f32 can do with for these sizes (pointers are not looked at), or a
 * negative status. */
COPPICE_API int64_t coppice_spmm_f32_scratch(const coppice_spmm_f32_args *args);

/* Runs the best available variant. */
COPPICE_API int32_t coppice_spmm_f32(const coppice_spmm_f32_args *args);

/* All variants of all primitives: numbers 0 .. count - 1, within a primitive from the reference to the fastest. */
COPPICE_API int32_t coppice_variant_count(void);
COPPICE_API int32_t coppice_variant_info(int32_t variant, coppice_variant *info);

/* Runs one variant; args points to the argument structure of its primitive. */
COPPICE_API int32_t coppice_variant_run(int32_t variant, const void *args);

/* cdef end */

#ifdef __cplusplus
}
#endif

#endif
