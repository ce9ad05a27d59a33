/* eltwise for NEON. */
#include "neon.h"

#include "../vector/eltwise.h"

void coppice_eltwise_neon(const coppice_eltwise_args *args) {
    eltwise_vectors(args);
}
