/* softmax for AVX2, FMA and F16C. */
#include "avx2.h"

#include "../vector/softmax.h"

void coppice_softmax_avx2(const coppice_softmax_args *args) {
    softmax_vectors(args);
}
