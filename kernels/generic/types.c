/* Element types in plain C. */
#include "../kernels.h"

#include <string.h>

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* IEEE 754 binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits. */
static float from_f16(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;
    if (magnitude >= 0x7c00) /* infinity, NaN */
        return from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13 | (magnitude > 0x7c00 ? 0x400000 : 0));
    if (magnitude < 0x400) { /* zero, subnormal: units of 2^-24, exact in fp32 */
        const float value = (float)magnitude * from_bits((127 - 24) << 23);
        return sign ? -value : value;
    }
    return from_bits(sign | ((magnitude << 13) + ((127 - 15) << 23)));
}

static uint16_t to_f16(float value) {
    const uint32_t bits = to_bits(value), magnitude = bits & 0x7fffffff;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x1ff));
    if (magnitude >= 0x477ff000) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000) { /* below 2^-14: adding 1/2 leaves a multiple of 2^-24 in the low bits */
        const float shifted = from_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (uint16_t)(to_bits(shifted) - to_bits(0.5f)));
    }
    const uint32_t odd = magnitude >> 13 & 1;
    return (uint16_t)(sign | (uint16_t)((magnitude + 0xfff + odd - ((127u - 15) << 23)) >> 13));
}

static uint16_t to_bf16(float value) {
    const uint32_t bits = to_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float coppice_load(int32_t type, const void *data, int64_t index) {
    switch (type) {
    case COPPICE_F16:
        return from_f16(((const uint16_t *)data)[index]);
    case COPPICE_BF16:
        return from_bits((uint32_t)((const uint16_t *)data)[index] << 16);
    case COPPICE_I8:
        return (float)((const int8_t *)data)[index];
    default:
        return ((const float *)data)[index];
    }
}

void coppice_store(int32_t type, void *data, int64_t index, float value) {
    switch (type) {
    case COPPICE_F16:
        ((uint16_t *)data)[index] = to_f16(value);
        break;
    case COPPICE_BF16:
        ((uint16_t *)data)[index] = to_bf16(value);
        break;
    default:
        ((float *)data)[index] = value;
    }
}
