/* depthwise for AVX2, FMA and F16C: sixteen registers. */
#include "avx2.h"

#define TILE_CASES CASE(4) CASE(2) CASE(1)

#include "../vector/depthwise.h"

void coppice_depthwise_avx2(const coppice_depthwise_args *args) {
    depthwise_vectors(args);
}
