/* pooling for AVX-512. */
#include "avx512.h"

#include "../vector/pooling.h"

void coppice_pooling_avx512(const coppice_pooling_args *args) {
    pooling_vectors(args);
}
