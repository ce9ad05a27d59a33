/* check [SHAPES.csv [THIN]]: every variant that this machine can run, against fp64, on edge, random and real shapes; of
 * all these problems one in THIN, for machines that are emulated.
 *
 * Inputs end where their allocation ends, so the address sanitizer sees a read too many; outputs stand between guards,
 * so a write too many is seen without it. Prints one line a failure, then a summary; exit status 1 after a failure. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

enum { most_printed = 20 };

static int expectations, failures, thin = 1;

void expect(int holds, const char *what, const char *where) {
    expectations++;
    if (!holds && ++failures <= most_printed)
        printf("FAILED %s: %s\n", what, where);
}

void expect_status(int64_t got, int32_t expected, const char *what) {
    char where[160];
    snprintf(where, sizeof where, "%s: expected \"%s\", got \"%s\"", what, coppice_status_text(expected),
             coppice_status_text((int32_t)got));
    expect(got == expected, "status", where);
}

int rounds(int whole) {
    return (whole + thin - 1) / thin;
}

int taken(void) {
    static int count;
    return count++ % thin == 0;
}

/* --- material ------------------------------------------------------------------------------------------------------
 */

static uint64_t random_state = 0x9e3779b97f4a7c15u;

/* xorshift64*: the same numbers on every machine. */
uint32_t random_bits(void) {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 2685821657736338717u) >> 32);
}

int64_t random_below(int64_t limit) {
    return (int64_t)(random_bits() % (uint64_t)limit);
}

/* Both signs, several magnitudes, now and then zero. */
float random_value(void) {
    const float magnitude = (float)(1 << random_below(6)) / 16;
    return random_below(64) ? ((float)random_bits() / 2147483648.0f - 1) * magnitude : 0;
}

void *allocate(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes ? bytes : 1) != 0)
        abort();
    return memory;
}

size_t size_of(int32_t type) {
    return type == COPPICE_F32 ? 4 : type == COPPICE_I8 ? 1 : 2;
}

/* `value` rounded to the nearest number of `digits` significant bits (ties to even), none smaller than 2^least. */
static double rounded(double value, int digits, int least) {
    int exponent;
    if (value == 0 || isnan(value) || isinf(value))
        return value;
    frexp(value, &exponent);
    const int unit = exponent - digits > least ? exponent - digits : least;
    return ldexp(nearbyint(ldexp(value, -unit)), unit);
}

static double round_f16(double value) {
    const double result = rounded(value, 11, -24);
    return fabs(result) > 65504 ? copysign(INFINITY, result) : result;
}

/* The bits of a half that `value` is: binary16 by hand, the upper half of binary32 for bfloat16. */
uint16_t half_bits(int32_t type, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (type == COPPICE_BF16)
        return isnan(value) ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    const uint16_t sign = signbit(value) ? 0x8000 : 0;
    if (isnan(value))
        return 0x7e00;
    const double magnitude = fabs(round_f16((double)value));
    if (isinf(magnitude))
        return sign | 0x7c00;
    if (magnitude < ldexp(1, -14))
        return (uint16_t)(sign | (uint16_t)ldexp(magnitude, 24));
    int exponent;
    const double fraction = frexp(magnitude, &exponent);
    return (uint16_t)(sign | (exponent + 14) << 10 | (int)((fraction * 2 - 1) * 1024));
}

double half_value(int32_t type, uint16_t bits) {
    if (type == COPPICE_BF16) {
        const uint32_t wide = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &wide, sizeof value);
        return (double)value;
    }
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double value = ldexp(exponent ? 1024 + fraction : fraction, exponent ? exponent - 25 : -24);
    if (exponent == 31)
        value = fraction ? NAN : INFINITY;
    return bits & 0x8000 ? -value : value;
}

void put(int32_t type, void *data, int64_t index, float value) {
    if (type == COPPICE_F32)
        ((float *)data)[index] = value;
    else if (type == COPPICE_I8)
        ((int8_t *)data)[index] = (int8_t)random_below(256);
    else
        ((uint16_t *)data)[index] = half_bits(type, value);
}

double get(int32_t type, const void *data, int64_t index) {
    if (type == COPPICE_F32)
        return (double)((const float *)data)[index];
    if (type == COPPICE_I8)
        return (double)((const int8_t *)data)[index];
    return half_value(type, ((const uint16_t *)data)[index]);
}

/* `count` elements that start `offset` elements past a cache line; free(result - offset elements). */
char *random_elements(int32_t type, int64_t count, int64_t offset) {
    char *memory = allocate((size_t)(count + offset) * size_of(type));
    for (int64_t i = 0; i < count; i++)
        put(type, memory, offset + i, random_value());
    return memory + (size_t)offset * size_of(type);
}

/* Elements from the first of a matrix to one past its last. */
int64_t extent(int64_t rows, int64_t pixels, int64_t stride) {
    return rows && pixels ? (rows - 1) * stride + pixels : 0;
}

int64_t ceiling(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

void make_special(int32_t type, void *data, int64_t count) {
    for (int spot = 0; spot < 5 && count; spot++)
        put(type, data, random_below(count), spot % 2 ? INFINITY : NAN);
}

double activated(int32_t activation, double z) {
    switch (activation) {
    case COPPICE_HARDSWISH:
        return z * fmin(fmax(z / 6 + 0.5, 0), 1);
    case COPPICE_SIGMOID:
        return 1 / (1 + exp(-z));
    case COPPICE_SILU:
        return z / (1 + exp(-z));
    case COPPICE_GELU:
        return z / 2 * erfc(-z / sqrt(2));
    default:
        return z;
    }
}

double rounding(int32_t type, double value, double off) {
    const double unit = type == COPPICE_F16 ? ldexp(1, -11) : type == COPPICE_BF16 ? ldexp(1, -8) : 0;
    return off + unit * (fabs(value) + off) + (type == COPPICE_F16 ? ldexp(1, -25) : (double)FLT_MIN);
}

double finished(int32_t activation, float lower, float upper, int32_t type, double sum, double off, double *bound) {
    double z = activated(activation, sum);
    if (activation != COPPICE_CLAMP_ONLY)
        off = 1.5 * off + 4e-7 * (1 + fabs(sum));
    if (isinf(sum))
        off = 0; /* what is left of an infinity is exact */
    z = z < (double)lower ? (double)lower : z;
    z = z > (double)upper ? (double)upper : z;
    *bound = rounding(type, z, off);
    return z;
}

static int matches(double got, double expected, double bound) {
    if (isnan(expected) || isinf(expected))
        return isnan(expected) ? isnan(got) : got == expected;
    return fabs(got - expected) <= bound;
}

/* --- outputs -------------------------------------------------------------------------------------------------------
 */

output make_output(int32_t type, int64_t rows, int64_t pixels, int64_t stride) {
    output y = {.type = type, .rows = rows, .pixels = pixels, .stride = stride, .count = extent(rows, pixels, stride)};
    const size_t bytes = (size_t)(y.count + 2 * guard) * size_of(type);
    y.before = allocate(bytes);
    y.after = allocate(bytes);
    memset(y.before, 0x7f, bytes); /* 0x7f7f is NaN in binary16, huge in the others */
    y.expected = allocate((size_t)(rows * pixels) * sizeof(double));
    y.bound = allocate((size_t)(rows * pixels) * sizeof(double));
    return y;
}

void free_output(output *y) {
    free(y->before);
    free(y->after);
    free(y->expected);
    free(y->bound);
}

void *start_of(const output *y, char *memory) {
    return memory + guard * size_of(y->type);
}

void restore(output *y) {
    memcpy(y->after, y->before, (size_t)(y->count + 2 * guard) * size_of(y->type));
}

int right_result(const output *y) {
    const void *data = start_of(y, y->after);
    for (int64_t row = 0; row < y->rows; row++)
        for (int64_t pixel = 0; pixel < y->pixels; pixel++) {
            const int64_t i = row * y->pixels + pixel;
            const double got = get(y->type, data, row * y->stride + pixel);
            if (!matches(got, y->expected[i], y->bound[i])) {
                printf("  row %lld, pixel %lld: %g instead of %g, %g off at most\n", (long long)row, (long long)pixel,
                       got, y->expected[i], y->bound[i]);
                return 0;
            }
        }
    return 1;
}

int kept_surroundings(const output *y) {
    const size_t size = size_of(y->type);
    for (int64_t i = -guard; i < y->count + guard; i++) {
        const int inside = i >= 0 && i < y->count && i % y->stride < y->pixels;
        const size_t at = (size_t)(i + guard) * size;
        if (!inside && memcmp(y->before + at, y->after + at, size) != 0)
            return 0;
    }
    return 1;
}

void give_scratch(coppice_work *work, int64_t bytes) {
    expect(bytes >= 0, "no size of scratch", "valid arguments");
    *work = (coppice_work){.shares = 1, .scratch = allocate((size_t)bytes), .scratch_bytes = bytes};
}

const char *next_variant(const char *primitive, int32_t *index) {
    coppice_variant variant;
    while (coppice_variant_info(++*index, &variant) == COPPICE_OK)
        if (strcmp(variant.primitive, primitive) == 0 && variant.available)
            return variant.name;
    return NULL;
}

void check_variants(const char *primitive, void *args, output *y, const char *what) {
    coppice_work *work = args;
    const char *name;
    for (int32_t index = -1; (name = next_variant(primitive, &index));) {
        int32_t status = COPPICE_OK;
        work->shares = (int32_t)random_below(4) + 1;
        restore(y);
        for (work->share = work->shares - 1; work->share >= 0 && status == COPPICE_OK; work->share--)
            status = coppice_variant_run(index, args);
        char where[400];
        snprintf(where, sizeof where, "%s %s, %s, %d shares", primitive, name, what, (int)work->shares);
        expect(status == COPPICE_OK, "refused", where);
        expect(right_result(y), "wrong result", where);
        expect(kept_surroundings(y), "wrote outside its output", where);
    }
    work->share = 0, work->shares = 1;
}

/* --- weights -------------------------------------------------------------------------------------------------------
 */

coppice_weight random_weight(coppice_weight w, double density) {
    const int64_t slabs = w.cols > w.slab ? ceiling(w.cols, w.slab) : 1, bands = ceiling(w.rows, w.height);
    const int dense = w.layout == COPPICE_DENSE;
    uint32_t *starts = allocate((size_t)(slabs * bands + 1) * sizeof *starts);
    uint16_t *columns = allocate((size_t)(bands * w.cols) * sizeof *columns);
    starts[0] = 0;
    w.entries = 0;
    for (int64_t list = 0; list < slabs * bands; list++) {
        const int64_t first = list / bands * w.slab;
        for (int64_t column = first; column < w.cols && column < first + w.slab; column++)
            if (dense || random_bits() < density * 4294967296.0)
                columns[w.entries++] = (uint16_t)(column - first);
        starts[list + 1] = (uint32_t)w.entries;
    }
    w.values = random_elements(w.type, w.entries * w.height, 0);
    w.starts = starts, w.columns = columns;
    if (w.type == COPPICE_I8 || random_below(4) == 0) {
        float *scales = allocate((size_t)w.rows * sizeof *scales);
        for (int64_t row = 0; row < w.rows; row++)
            scales[row] = (float)(1 + random_below(8)) / 1024;
        w.scales = scales;
    }
    return w;
}

coppice_weight without_lists(coppice_weight weight) {
    if (weight.layout == COPPICE_DENSE)
        weight.starts = NULL, weight.columns = NULL;
    return weight;
}

void free_weight(coppice_weight *weight) {
    free((void *)weight->starts);
    free((void *)weight->columns);
    free((void *)weight->values);
    free((void *)weight->scales);
}

/* --- windows -------------------------------------------------------------------------------------------------------
 */

coppice_window random_window(void) {
    coppice_window w = {.channels = random_below(6),
                        .height = random_below(12),
                        .width = random_below(40),
                        .kernel_y = 1 + random_below(5),
                        .kernel_x = 1 + random_below(5),
                        .stride_y = 1 + random_below(3),
                        .stride_x = 1 + random_below(3),
                        .dilation_y = 1 + random_below(3),
                        .dilation_x = 1 + random_below(3),
                        .pad_y = random_below(6),
                        .pad_x = random_below(6),
                        .out_height = random_below(9),
                        .out_width = random_below(45)};
    w.row_stride = w.width + random_below(3) * random_below(4);
    w.channel_stride = w.height * w.row_stride + random_below(3) * random_below(4);
    return w;
}

coppice_window random_near_or_far_window(void) {
    coppice_window w = random_window();
    int64_t *const far[] = {&w.stride_y, &w.stride_x, &w.dilation_y, &w.dilation_x, &w.pad_y, &w.pad_x};
    if (random_below(8) == 0)
        *far[random_below(6)] = INT32_MAX - random_below(4);
    return w;
}

int64_t window_extent(const coppice_window *w) {
    return w->channels && w->height ? (w->channels - 1) * w->channel_stride + (w->height - 1) * w->row_stride + w->width
                                    : 0;
}

int window_place(const coppice_window *w, int64_t pixel, int64_t tap, int64_t *y, int64_t *x) {
    *y = pixel / w->out_width * w->stride_y + tap / w->kernel_x * w->dilation_y - w->pad_y;
    *x = pixel % w->out_width * w->stride_x + tap % w->kernel_x * w->dilation_x - w->pad_x;
    return *y >= 0 && *x >= 0 && *y < w->height && *x < w->width;
}

double column_at(int32_t type, const void *x, int64_t stride, const coppice_window *w, int64_t column, int64_t pixel) {
    if (!w)
        return get(type, x, column * stride + pixel);
    const int64_t channel = column / (w->kernel_y * w->kernel_x);
    int64_t row, place;
    if (!window_place(w, pixel, column % (w->kernel_y * w->kernel_x), &row, &place))
        return 0;
    return get(type, x, channel * w->channel_stride + row * w->row_stride + place);
}

/* --- dispatch ------------------------------------------------------------------------------------------------------
 */

static void check_dispatch(void) {
    const int32_t highest = coppice_isa_active(), count = coppice_variant_count();
    coppice_variant variant;
    expect(coppice_abi_version() == COPPICE_ABI_VERSION, "ABI version", "abi.h");
    expect_status(coppice_isa_limit("sse9"), COPPICE_ISA_UNKNOWN, "limit sse9");
    expect_status(coppice_variant_info(count, &variant), COPPICE_VARIANT_UNKNOWN, "info past the last");
    expect_status(coppice_variant_info(-1, &variant), COPPICE_VARIANT_UNKNOWN, "info before the first");
    expect_status(coppice_variant_run(count, NULL), COPPICE_VARIANT_UNKNOWN, "run past the last");
    for (int32_t isa = 0; coppice_isa_name(isa); isa++) {
        const int32_t expected = isa <= highest ? COPPICE_OK : COPPICE_ISA_MISSING;
        expect_status(coppice_isa_limit(coppice_isa_name(isa)), expected, coppice_isa_name(isa));
        expect(coppice_isa_active() == (isa <= highest ? isa : highest), "limit", coppice_isa_name(isa));
        for (int32_t index = 0; index < count; index++) {
            coppice_variant_info(index, &variant);
            expect(variant.available == (variant.isa <= coppice_isa_active()), "availability", variant.name);
            if (!variant.available)
                expect_status(coppice_variant_run(index, NULL), COPPICE_ISA_MISSING, variant.name);
        }
    }
    expect_status(coppice_isa_limit(NULL), COPPICE_OK, "no limit");
    expect(coppice_isa_active() == highest, "limit", "lifted");
}

int main(int count, char **arguments) {
    thin = count > 2 ? atoi(arguments[2]) : 1;
    if (thin < 1) {
        printf("check: THIN is %s, not a number from 1 on\n", arguments[2]);
        return 2;
    }
    check_dispatch();
    check_layouts();
    check_matmul(count > 1 ? arguments[1] : NULL);
    check_pool();
    check_weight_gradient();
    check_depthwise();
    check_norm();
    check_softmax();
    check_pooling();
    check_eltwise();
    printf("check: %d expectations, %d failed, up to %s\n", expectations, failures,
           coppice_isa_name(coppice_isa_active()));
    return failures > 0;
}
