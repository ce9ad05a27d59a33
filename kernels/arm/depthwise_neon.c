/* depthwise for NEON. */
#include "neon.h"

#include "../vector/depthwise.h"

void coppice_depthwise_neon(const coppice_depthwise_args *args) {
    depthwise_vectors(args);
}
