/* pooling for AVX2, FMA and F16C. */
#include "avx2.h"

#include "../vector/pooling.h"

void coppice_pooling_avx2(const coppice_pooling_args *args) {
    pooling_vectors(args);
}
