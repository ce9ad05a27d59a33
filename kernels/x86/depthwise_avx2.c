/* depthwise for AVX2, FMA and F16C. */
#include "avx2.h"

#include "../vector/depthwise.h"

void coppice_depthwise_avx2(const coppice_depthwise_args *args) {
    depthwise_vectors(args);
}
