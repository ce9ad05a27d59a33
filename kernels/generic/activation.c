/* Activations in plain C. */
#include "../kernels.h"

#include <math.h>

float coppice_activate(int32_t activation, float lower, float upper, float z) {
    switch (activation) {
    case COPPICE_HARDSWISH: {
        const float gate = z / 6.0f + 0.5f;
        z *= gate < 0.0f ? 0.0f : gate > 1.0f ? 1.0f : gate;
        break;
    }
    case COPPICE_SIGMOID:
        z = 1.0f / (1.0f + expf(-z));
        break;
    case COPPICE_SILU:
        z = z / (1.0f + expf(-z));
        break;
    case COPPICE_GELU:
        z = z * 0.5f * erfcf(-z * 0.70710678f);
        break;
    default:
        break;
    }
    /* Comparisons with NaN are false: it stays. */
    const float raised = z < lower ? lower : z;
    return raised > upper ? upper : raised;
}
