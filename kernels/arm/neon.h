/* Vectors of four fp32 in NEON, as every 64-bit Arm has it: the operations that the algorithms of vector/ are written
 * in. There are no masked loads: what is less than a vector goes by the parts of two and one that it consists of. */
#include "../kernels.h"

#include <arm_neon.h>
#include <string.h>

#define LANES 4

typedef float32x4_t vector;

static inline vector zero(void) {
    return vdupq_n_f32(0);
}

static inline vector broadcast(float value) {
    return vdupq_n_f32(value);
}

static inline vector load(const float *from) {
    return vld1q_f32(from);
}

static inline void store(float *to, vector value) {
    vst1q_f32(to, value);
}

/* The same value, read from memory once. */
static inline vector in_register(vector value) {
    __asm__("" : "+w"(value));
    return value;
}

/* `count` in 1 .. 3, here and below. */
static inline vector load_tail(const float *from, int count) {
    const float32x2_t none = vdup_n_f32(0);
    const float32x2_t low = count > 1 ? vld1_f32(from) : vld1_lane_f32(from, none, 0);
    return vcombine_f32(low, count == 3 ? vld1_lane_f32(from + 2, none, 0) : none);
}

static inline void store_tail(float *to, int count, vector value) {
    if (count == 1) {
        vst1q_lane_f32(to, value, 0);
        return;
    }
    vst1_f32(to, vget_low_f32(value));
    if (count == 3)
        vst1q_lane_f32(to + 2, value, 2);
}

/* Lanes first .. end - 1, the others zero and not read. */
static inline vector load_lanes(const float *from, int first, int end) {
    float padded[LANES] = {0};
    memcpy(padded + first, from + first, (size_t)(end - first) * sizeof *from);
    return vld1q_f32(padded);
}

static inline uint16x4_t load_half_lanes(const uint16_t *from, int first, int end) {
    uint16_t padded[LANES] = {0};
    memcpy(padded + first, from + first, (size_t)(end - first) * sizeof *from);
    return vld1_u16(padded);
}

static inline uint16x4_t load_halves(const uint16_t *from, int count) {
    uint16x4_t halves = vdup_n_u16(0);
    if (count == LANES)
        return vld1_u16(from);
    halves = vld1_lane_u16(from, halves, 0);
    if (count > 1)
        halves = vld1_lane_u16(from + 1, halves, 1);
    return count == 3 ? vld1_lane_u16(from + 2, halves, 2) : halves;
}

static inline void store_halves(uint16_t *to, int count, uint16x4_t halves) {
    if (count == LANES) {
        vst1_u16(to, halves);
        return;
    }
    vst1_lane_u16(to, halves, 0);
    if (count > 1)
        vst1_lane_u16(to + 1, halves, 1);
    if (count == 3)
        vst1_lane_u16(to + 2, halves, 2);
}

static inline vector from_f16(uint16x4_t halves) {
    return vcvt_f32_f16(vreinterpret_f16_u16(halves));
}

static inline uint16x4_t to_f16(vector value) {
    return vreinterpret_u16_f16(vcvt_f16_f32(value));
}

static inline vector from_bf16(uint16x4_t halves) {
    return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
}

static inline uint16x4_t to_bf16(vector value) {
    const uint32x4_t bits = vreinterpretq_u32_f32(value), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(value, value), rounded, quiet), 16);
}

static inline vector load_i8(const int8_t *from, int count) {
    int8_t padded[2 * LANES] = {0};
    memcpy(padded, from, count < LANES ? (size_t)count : LANES);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(padded)))));
}

/* v with part `part` of its `parts` equal parts filled with *from; bands are never narrower than these vectors. */
static inline vector broadcast_into(vector v, int part, int parts, const float *from) {
    (void)v, (void)part, (void)parts;
    return vld1q_dup_f32(from);
}

static inline vector add(vector a, vector b) {
    return vaddq_f32(a, b);
}

static inline vector subtract(vector a, vector b) {
    return vsubq_f32(a, b);
}

static inline vector multiply(vector a, vector b) {
    return vmulq_f32(a, b);
}

static inline vector multiply_add(vector a, vector b, vector c) {
    return vfmaq_f32(c, a, b);
}

/* Both return NaN where a or b is NaN. */
static inline vector maximum(vector a, vector b) {
    return vmaxq_f32(a, b);
}

static inline vector minimum(vector a, vector b) {
    return vminq_f32(a, b);
}

static inline vector square_root(vector a) {
    return vsqrtq_f32(a);
}

/* NaN where a or b is. */
static inline vector greatest(vector a, vector b) {
    return vmaxq_f32(a, b);
}

static inline float sum_lanes(vector a) {
    return vaddvq_f32(a);
}

/* Lane i is the sum of the lanes of a[i]. */
static inline vector sums_of_lanes(const vector *a) {
    return vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3]));
}

/* to[i] = the sum of the lanes of a[i], of four vectors. */
static inline void sums_of_four(const vector *a, float *to) {
    vst1q_f32(to, sums_of_lanes(a));
}

/* The greatest lane; of NaN lanes any or none. */
static inline float maximum_lane(vector a) {
    return vmaxvq_f32(a);
}

static inline vector divide(vector a, vector b) {
    return vdivq_f32(a, b);
}

static inline vector absolute(vector a) {
    return vabsq_f32(a);
}

/* b where a < 0, else c. */
static inline vector where_negative(vector a, vector b, vector c) {
    return vbslq_f32(vcltzq_f32(a), b, c);
}

/* The first `count` lanes of a, the others of b. */
static inline vector first_lanes(int count, vector a, vector b) {
    static const uint32_t numbers[LANES] = {0, 1, 2, 3};
    return vbslq_f32(vcltq_u32(vld1q_u32(numbers), vdupq_n_u32((uint32_t)count)), a, b);
}

/* Lanes 0, 2, 4, ... of a and then of b; lanes 1, 3, 5, ... */
static inline vector even_lanes(vector a, vector b) {
    return vuzp1q_f32(a, b);
}

static inline vector odd_lanes(vector a, vector b) {
    return vuzp2q_f32(a, b);
}

static inline vector nearest_integer(vector a) {
    return vrndnq_f32(a);
}

static inline vector power_of_two(int32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}

/* a * 2^n for an integral n in -252 .. 252: in two steps, so that it may overflow and underflow. */
static inline vector scale(vector a, vector n) {
    const int32x4_t whole = vcvtq_s32_f32(n), half = vshrq_n_s32(whole, 1);
    return vmulq_f32(vmulq_f32(a, power_of_two(half)), power_of_two(vsubq_s32(whole, half)));
}
