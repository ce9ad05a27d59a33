/* Which variants there are, which of them this machine can run, and running one. */
#define _DEFAULT_SOURCE /* syscall */
#include "kernels.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#if COPPICE_X86
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif COPPICE_ARM && defined(__linux__)
#include <sys/auxv.h>
#elif COPPICE_ARM && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

static const char *const isa_names[] = {
    [COPPICE_GENERIC] = "generic",
#if COPPICE_X86
    [COPPICE_AVX2] = "avx2",
    [COPPICE_AVX512] = "avx512",
    [COPPICE_AVX512_VNNI] = "avx512_vnni",
    [COPPICE_AVX512_BF16] = "avx512_bf16",
    [COPPICE_AVX512_FP16] = "avx512_fp16",
    [COPPICE_AMX_INT8] = "amx_int8",
    [COPPICE_AMX_BF16] = "amx_bf16",
#elif COPPICE_ARM
    [COPPICE_NEON] = "neon",
    [COPPICE_NEON_FP16] = "neon_fp16",
#endif
};

enum { isa_count = sizeof isa_names / sizeof *isa_names, unlimited = isa_count - 1 };

static atomic_int isa_limit = unlimited;

#if COPPICE_X86

/* The register files that the operating system saves on a task switch: XCR0. */
static unsigned saved_state(void) {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* Linux saves the tiles of a process that has asked for them (its Documentation/arch/x86/xstate.rst). */
static int tiles_allowed(void) {
#if COPPICE_X86_AMX && defined(__linux__)
    enum { ask_for_permission = 0x1023, tile_data = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    return syscall(SYS_arch_prctl, ask_for_permission, tile_data) == 0;
#else
    return 0;
#endif
}

/* Intel SDM volume 1, 13.2 and 15.2-15.4: the CPU must have the instructions and the system must save the registers. */
static int detect(void) {
    enum { ymm_saved = 0x06, zmm_saved = 0xe6, tiles_saved = 0x60000 };
    enum { vbmi = 1 << 1, vbmi2 = 1 << 6, avx512_vnni = 1 << 11 };                                /* leaf 7, ecx */
    enum { amx_bf16 = 1 << 22, avx512_fp16 = 1 << 23, amx_int8 = 3 << 24, avx512_bf16 = 1 << 5 }; /* edx; 7.1, eax */
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE) || !(ecx & bit_AVX) || !(ecx & bit_FMA) ||
        !(ecx & bit_F16C))
        return COPPICE_GENERIC;
    const unsigned saved = saved_state();
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(ebx & bit_AVX2) || (saved & ymm_saved) != ymm_saved)
        return COPPICE_GENERIC;
    const unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    const unsigned vnni = vbmi | vbmi2 | avx512_vnni, features = edx;
    if ((ebx & avx512) != avx512 || (saved & zmm_saved) != zmm_saved)
        return COPPICE_AVX2;
    if ((ecx & vnni) != vnni)
        return COPPICE_AVX512;
    if (eax < 1 || !__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) || !(eax & avx512_bf16))
        return COPPICE_AVX512_VNNI;
    if (COPPICE_EMULATE)
        return COPPICE_AMX_BF16;
    if (!(features & avx512_fp16))
        return COPPICE_AVX512_BF16;
    if ((features & amx_int8) != amx_int8 || (saved & tiles_saved) != tiles_saved || !tiles_allowed())
        return COPPICE_AVX512_FP16;
    return features & amx_bf16 ? COPPICE_AMX_BF16 : COPPICE_AMX_INT8;
}

#elif COPPICE_ARM

/* NEON is part of every 64-bit Arm; the system says whether there is FEAT_FP16, or else the compiler was told. */
static int detect(void) {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDHP ? COPPICE_NEON_FP16 : COPPICE_NEON;
#elif defined(__APPLE__)
    int present = 0;
    size_t size = sizeof present;
    const int known = sysctlbyname("hw.optional.arm.FEAT_FP16", &present, &size, NULL, 0) == 0;
    return known && present ? COPPICE_NEON_FP16 : COPPICE_NEON;
#elif defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
    return COPPICE_NEON_FP16;
#else
    return COPPICE_NEON;
#endif
}

#else

static int detect(void) {
    return COPPICE_GENERIC;
}

#endif

/* Asked once: CPUID, for one, leaves a virtual machine for its host, which takes microseconds. */
static int highest_isa(void) {
    static atomic_int cached = -1;
    int isa = atomic_load_explicit(&cached, memory_order_relaxed);
    if (isa < 0) {
        isa = detect();
        atomic_store_explicit(&cached, isa, memory_order_relaxed);
    }
    return isa;
}

/* A variant's function takes the arguments of its primitive; the table needs one type for all. */
#define COPPICE_VARIANT(primitive, name, isa)                                                                          \
    static int32_t run_##primitive##_##name(const void *args) {                                                        \
        const int32_t status = coppice_##primitive##_check(args);                                                      \
        if (status == COPPICE_OK)                                                                                      \
            coppice_##primitive##_##name(args);                                                                        \
        return status;                                                                                                 \
    }
#include "variants.def"
#undef COPPICE_VARIANT

typedef struct row {
    const char *primitive;
    const char *name;
    int32_t isa;
    size_t size; /* of the arguments */
    int32_t (*run)(const void *args);
} row;

#define COPPICE_VARIANT(primitive, name, isa)                                                                          \
    {#primitive, #name, isa, sizeof(coppice_##primitive##_args), run_##primitive##_##name},
static const row rows[] = {
#include "variants.def"
};
#undef COPPICE_VARIANT

enum { row_count = sizeof rows / sizeof *rows };

static int available(const row *variant) {
    return variant->isa <= coppice_isa_active();
}

static int32_t run_best(const char *primitive, const void *args) {
    for (int32_t variant = row_count - 1; variant >= 0; variant--)
        if (available(&rows[variant]) && strcmp(rows[variant].primitive, primitive) == 0)
            return rows[variant].run(args);
    return COPPICE_VARIANT_UNKNOWN;
}

int32_t coppice_matmul(const coppice_matmul_args *args) {
    return run_best("matmul", args);
}

int32_t coppice_weight_gradient(const coppice_weight_gradient_args *args) {
    return run_best("weight_gradient", args);
}

int32_t coppice_depthwise(const coppice_depthwise_args *args) {
    return run_best("depthwise", args);
}

int32_t coppice_norm(const coppice_norm_args *args) {
    return run_best("norm", args);
}

int32_t coppice_softmax(const coppice_softmax_args *args) {
    return run_best("softmax", args);
}

int32_t coppice_pooling(const coppice_pooling_args *args) {
    return run_best("pooling", args);
}

int32_t coppice_eltwise(const coppice_eltwise_args *args) {
    return run_best("eltwise", args);
}

int32_t coppice_variant_count(void) {
    return row_count;
}

int32_t coppice_variant_info(int32_t variant, coppice_variant *info) {
    if (!info)
        return COPPICE_NULL;
    if (variant < 0 || variant >= row_count)
        return COPPICE_VARIANT_UNKNOWN;
    const row *found = &rows[variant];
    *info = (coppice_variant){found->primitive, found->name, found->isa, available(found)};
    return COPPICE_OK;
}

int32_t coppice_variant_run(int32_t variant, const void *args) {
    if (variant < 0 || variant >= row_count)
        return COPPICE_VARIANT_UNKNOWN;
    return available(&rows[variant]) ? rows[variant].run(args) : COPPICE_ISA_MISSING;
}

size_t coppice_args_size(int32_t variant) {
    return variant < 0 || variant >= row_count ? 0 : rows[variant].size;
}

int32_t coppice_isa_active(void) {
    const int highest = highest_isa(), limit = atomic_load_explicit(&isa_limit, memory_order_relaxed);
    return limit < highest ? limit : highest;
}

const char *coppice_isa_name(int32_t isa) {
    return isa < 0 || isa >= isa_count ? NULL : isa_names[isa];
}

int32_t coppice_isa_limit(const char *name) {
    int limit = unlimited;
    if (name) {
        for (limit = 0; limit < isa_count && strcmp(isa_names[limit], name) != 0;)
            limit++;
        if (limit == isa_count)
            return COPPICE_ISA_UNKNOWN;
        if (limit > highest_isa())
            return COPPICE_ISA_MISSING;
    }
    atomic_store_explicit(&isa_limit, limit, memory_order_relaxed);
    return COPPICE_OK;
}

int32_t coppice_abi_version(void) {
    return COPPICE_ABI_VERSION;
}

const char *coppice_status_text(int32_t status) {
    switch (status) {
    case COPPICE_OK:
        return "done";
    case COPPICE_NULL:
        return "a pointer that is needed is NULL";
    case COPPICE_SIZE:
        return "a size is negative or more than can be addressed";
    case COPPICE_STRIDE:
        return "a row stride is shorter than its row, or more than can be addressed";
    case COPPICE_ALIGNMENT:
        return "a pointer is not a multiple of its element's size";
    case COPPICE_CLAMP:
        return "the lower bound of the activation is above the upper one, or one of them is NaN";
    case COPPICE_SCRATCH:
        return "the scratch buffer is too small";
    case COPPICE_LAYOUT:
        return "there is no such layout of weights, or not with this height";
    case COPPICE_STARTS:
        return "starts does not rise from zero to the number of entries";
    case COPPICE_COLUMNS:
        return "the columns of a band do not rise strictly, or leave their slab";
    case COPPICE_ISA_UNKNOWN:
        return "no instruction set has this name";
    case COPPICE_ISA_MISSING:
        return "this machine lacks the instruction set, or the library was built without it";
    case COPPICE_VARIANT_UNKNOWN:
        return "no variant has this number";
    case COPPICE_TYPE:
        return "there is no such element type, or not in this place";
    case COPPICE_WINDOW:
        return "the window does not give as many columns or pixels as there are";
    case COPPICE_ACTIVATION:
        return "there is no such activation";
    case COPPICE_SHARE:
        return "share is not in 0 .. shares - 1";
    case COPPICE_THREADS:
        return "the number of threads is not in 1 .. 256, or the system gives no more threads";
    case COPPICE_BUSY:
        return "the pool is at work for another thread, or for a call of its own";
    case COPPICE_CODE:
        return "the code was not written for this weight by this library";
    case COPPICE_CHANNELS:
        return "a row of the result has no channel of x";
    case COPPICE_KIND:
        return "there is no such kind of normalisation or pooling";
    case COPPICE_EPSILON:
        return "epsilon is negative, infinite or NaN";
    case COPPICE_LANES:
        return "two rows of a window have the same lane, or one has none";
    default:
        return "unknown status";
    }
}
