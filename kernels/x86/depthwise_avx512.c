/* depthwise for AVX-512. */
#include "avx512.h"

#include "../vector/depthwise.h"

void coppice_depthwise_avx512(const coppice_depthwise_args *args) {
    depthwise_vectors(args);
}
