/* Vectors of eight fp16 with half-precision arithmetic (FEAT_FP16 of Armv8.2), beside the four fp32 of neon.h. */
#include "neon.h"

#define HALF_LANES 8

typedef float16x8_t halves;

static inline halves half_zero(void) {
    return vdupq_n_f16(0);
}

static inline halves half_broadcast(const uint16_t *from) {
    return vreinterpretq_f16_u16(vld1q_dup_u16(from));
}

static inline halves half_load(const uint16_t *from) {
    return vreinterpretq_f16_u16(vld1q_u16(from));
}

static inline halves half_add(halves a, halves b) {
    return vaddq_f16(a, b);
}

static inline halves half_multiply_add(halves a, halves b, halves c) {
    return vfmaq_f16(c, a, b);
}

/* The first half of the lanes as fp32, and the second. */
static inline vector half_low(halves a) {
    return vcvt_f32_f16(vget_low_f16(a));
}

static inline vector half_high(halves a) {
    return vcvt_high_f32_f16(a);
}
