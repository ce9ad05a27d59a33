/* softmax for NEON. */
#include "neon.h"

#include "../vector/softmax.h"

void coppice_softmax_neon(const coppice_softmax_args *args) {
    softmax_vectors(args);
}
