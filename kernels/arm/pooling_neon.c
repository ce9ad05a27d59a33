/* pooling for NEON. */
#include "neon.h"

#include "../vector/pooling.h"

void coppice_pooling_neon(const coppice_pooling_args *args) {
    pooling_vectors(args);
}
