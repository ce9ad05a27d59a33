/* What the C files of the library share; not installed and not part of the interface. */
#ifndef COPPICE_KERNELS_H
#define COPPICE_KERNELS_H

#include "abi.h"

#ifndef COPPICE_X86
#define COPPICE_X86 0
#endif

/* Panels of activations are at most this many pixels wide: five AVX-512 or ten AVX2 accumulators per row. */
#define COPPICE_PANEL_PIXELS 80

/* Panels in scratch start on a cache line. */
#define COPPICE_SCRATCH_ALIGNMENT 64

/* The widest slab: columns are stored in 16 bits. */
#define COPPICE_SLAB_MAX 65536

/* Variants: called with arguments that passed coppice_spmm_f32_check. */
#define COPPICE_VARIANT(primitive, name, isa) void coppice_##primitive##_##name(const coppice_##primitive##_args *args);
#include "variants.def"
#undef COPPICE_VARIANT

/* Everything about the arguments but the entries of the weight. */
int32_t coppice_spmm_f32_check(const coppice_spmm_f32_args *args);

/* Slabs of a matrix whose sizes are valid; at least one, so that the epilogue always runs. */
static inline int64_t coppice_slabs(const coppice_csr_f32 *weight) {
    return weight->cols <= weight->slab ? 1 : (weight->cols + weight->slab - 1) / weight->slab;
}

#endif
