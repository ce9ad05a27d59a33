/* depthwise for AVX-512: thirty-two registers. */
#include "avx512.h"

#define TILE_CASES CASE(7) CASE(4) CASE(2) CASE(1)

#include "../vector/depthwise.h"

void coppice_depthwise_avx512(const coppice_depthwise_args *args) {
    depthwise_vectors(args);
}
