/* softmax for AVX-512. */
#include "avx512.h"

#include "../vector/softmax.h"

void coppice_softmax_avx512(const coppice_softmax_args *args) {
    softmax_vectors(args);
}
