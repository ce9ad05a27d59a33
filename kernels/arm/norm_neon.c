/* norm for NEON. */
#include "neon.h"

#include "../vector/norm.h"

void coppice_norm_neon(const coppice_norm_args *args) {
    norm_vectors(args);
}
