/* eltwise for AVX2, FMA and F16C. */
#include "avx2.h"

#include "../vector/eltwise.h"

void coppice_eltwise_avx2(const coppice_eltwise_args *args) {
    eltwise_vectors(args);
}
