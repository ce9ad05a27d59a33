/* norm for AVX2, FMA and F16C. */
#include "avx2.h"

#include "../vector/norm.h"

void coppice_norm_avx2(const coppice_norm_args *args) {
    norm_vectors(args);
}
