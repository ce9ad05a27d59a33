/* eltwise for AVX-512. */
#include "avx512.h"

#include "../vector/eltwise.h"

void coppice_eltwise_avx512(const coppice_eltwise_args *args) {
    eltwise_vectors(args);
}
