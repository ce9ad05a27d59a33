/* norm for AVX-512. */
#include "avx512.h"

#include "../vector/norm.h"

void coppice_norm_avx512(const coppice_norm_args *args) {
    norm_vectors(args);
}
