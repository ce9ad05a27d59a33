/* check [SHAPES.csv]: every variant that this machine can run, against fp64, on edge, random and real shapes.
 *
 * Inputs end where their allocation ends, so the address sanitizer sees a read too many; outputs stand between guards,
 * so a write too many is seen without it. Prints one line a failure, then a summary; exit status 1 after a failure. */
#define _POSIX_C_SOURCE 200809L
#include "abi.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { guard = 24, most_printed = 20 };

static int expectations, failures;

static void expect(int holds, const char *what, const char *where) {
    expectations++;
    if (!holds && ++failures <= most_printed)
        printf("FAILED %s: %s\n", what, where);
}

/* --- material ------------------------------------------------------------------------------------------------------
 */

static uint64_t random_state = 0x9e3779b97f4a7c15u;

/* xorshift64*: the same numbers on every machine. */
static uint32_t random_bits(void) {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 2685821657736338717u) >> 32);
}

static int64_t random_below(int64_t limit) {
    return (int64_t)(random_bits() % (uint64_t)limit);
}

/* Both signs, several magnitudes, now and then zero. */
static float random_value(void) {
    const float magnitude = (float)(1 << random_below(6)) / 16;
    return random_below(64) ? ((float)random_bits() / 2147483648.0f - 1) * magnitude : 0;
}

static void *allocate(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes ? bytes : 1) != 0)
        abort();
    return memory;
}

static size_t size_of(int32_t type) {
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
static uint16_t half_bits(int32_t type, float value) {
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

static double half_value(int32_t type, uint16_t bits) {
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

static void put(int32_t type, void *data, int64_t index, float value) {
    if (type == COPPICE_F32)
        ((float *)data)[index] = value;
    else if (type == COPPICE_I8)
        ((int8_t *)data)[index] = (int8_t)random_below(256);
    else
        ((uint16_t *)data)[index] = half_bits(type, value);
}

static double get(int32_t type, const void *data, int64_t index) {
    if (type == COPPICE_F32)
        return (double)((const float *)data)[index];
    if (type == COPPICE_I8)
        return (double)((const int8_t *)data)[index];
    return half_value(type, ((const uint16_t *)data)[index]);
}

/* `count` elements that start `offset` elements past a cache line; free(result - offset elements). */
static char *random_elements(int32_t type, int64_t count, int64_t offset) {
    char *memory = allocate((size_t)(count + offset) * size_of(type));
    for (int64_t i = 0; i < count; i++)
        put(type, memory, offset + i, random_value());
    return memory + (size_t)offset * size_of(type);
}

/* Elements from the first of a matrix to one past its last. */
static int64_t extent(int64_t rows, int64_t pixels, int64_t stride) {
    return rows && pixels ? (rows - 1) * stride + pixels : 0;
}

static int64_t ceiling(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static coppice_weight random_weight(coppice_weight w, double density) {
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

/* A dense weight has no lists, which the library must not need; what they would say is kept for the reference. */
static coppice_weight without_lists(coppice_weight weight) {
    if (weight.layout == COPPICE_DENSE)
        weight.starts = NULL, weight.columns = NULL;
    return weight;
}

static void free_weight(coppice_weight *weight) {
    free((void *)weight->starts);
    free((void *)weight->columns);
    free((void *)weight->values);
    free((void *)weight->scales);
}

/* --- one problem, all variants -------------------------------------------------------------------------------------
 */

typedef struct problem {
    int64_t rows, cols, pixels, slab; /* cols and pixels are of the window where there is one */
    double density;
    int64_t height; /* of the bands; 0: dense, in bands of 4, 8 or 16 */
    int32_t weight_type, type, activation, arithmetic;
    int special; /* some infinities and NaN in x */
    const coppice_window *window;
} problem;

/* A problem made concrete: arguments, what y must hold and how far off it may be, and all of y with its guards. */
typedef struct trial {
    coppice_matmul_args args;
    coppice_weight lists;
    char *x, *residual;
    float *bias;
    int64_t x_offset, y_count;
    double *expected, *bound; /* [rows][pixels] */
    char *before, *after;     /* guard, y_count, guard elements */
} trial;

static double x_at(const coppice_matmul_args *args, int64_t column, int64_t pixel) {
    const coppice_window *w = args->window;
    if (!w)
        return get(args->type, args->x, column * args->x_stride + pixel);
    const int64_t channel = column / (w->kernel_y * w->kernel_x), tap = column % (w->kernel_y * w->kernel_x);
    const int64_t y = pixel / w->out_width * w->stride_y + tap / w->kernel_x * w->dilation_y - w->pad_y;
    const int64_t x = pixel % w->out_width * w->stride_x + tap % w->kernel_x * w->dilation_x - w->pad_x;
    if (y < 0 || x < 0 || y >= w->height || x >= w->width)
        return 0;
    return get(args->type, args->x, channel * w->channel_stride + y * w->row_stride + x);
}

static double activated(int32_t activation, double z) {
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

/* How far fp16 arithmetic may be off for a sum of `count` products, as abi.h has it. */
static double f16_error(const coppice_matmul_args *args, double count, double magnitude) {
    if (args->arithmetic != COPPICE_F16 || args->type != COPPICE_F16 || args->weight.type != COPPICE_F16)
        return 0;
    return fmin(count, 128) * ldexp(1, -10) * magnitude + count * ldexp(1, -24);
}

/* The value in fp64. Of n products, the scale, the bias and the residual, each of the n + 3 roundings errs by at most
 * half an epsilon of the sum of magnitudes; the bound is twice that. No activation is steeper than 1.5; those with an
 * exponential may be off by 4e-7 of 1 + |z| themselves. Then comes the rounding to the type of y. */
static double reference(const trial *t, int64_t row, int64_t pixel, double *bound) {
    const coppice_matmul_args *args = &t->args;
    const coppice_weight *weight = &t->lists;
    const int64_t slabs = weight->cols > weight->slab ? ceiling(weight->cols, weight->slab) : 1;
    const int64_t bands = ceiling(weight->rows, weight->height), band = row / weight->height;
    const double bias = args->bias ? (double)args->bias[row] : 0;
    const double residual = args->residual ? get(args->type, args->residual, row * args->residual_stride + pixel) : 0;
    const double scale = weight->scales ? (double)weight->scales[row] : 1;
    double sum = bias + residual, magnitude = fabs(bias) + fabs(residual), products = 0, terms = 3;
    for (int64_t slab = 0; slab < slabs; slab++) {
        const uint32_t *starts = weight->starts + slab * bands + band;
        for (uint32_t entry = starts[0]; entry < starts[1]; entry++, terms++) {
            const double value = get(weight->type, weight->values, entry * weight->height + row % weight->height);
            const double product = scale * value * x_at(args, slab * weight->slab + weight->columns[entry], pixel);
            sum += product;
            products += fabs(product);
        }
    }
    magnitude += products;
    double off = terms * (double)FLT_EPSILON * magnitude + scale * f16_error(args, terms - 3, products / scale),
           z = activated(args->activation, sum);
    if (args->activation != COPPICE_CLAMP_ONLY)
        off = 1.5 * off + 4e-7 * (1 + fabs(sum));
    if (isinf(sum))
        off = 0; /* what is left of an infinity is exact */
    z = z < (double)args->lower ? (double)args->lower : z;
    z = z > (double)args->upper ? (double)args->upper : z;
    const double unit = args->type == COPPICE_F16 ? ldexp(1, -11) : args->type == COPPICE_BF16 ? ldexp(1, -8) : 0;
    *bound = off + unit * (fabs(z) + off) + (args->type == COPPICE_F16 ? ldexp(1, -25) : (double)FLT_MIN);
    return z;
}

static int matches(double got, double expected, double bound) {
    if (isnan(expected) || isinf(expected))
        return isnan(expected) ? isnan(got) : got == expected;
    return fabs(got - expected) <= bound;
}

static trial make_trial(problem p) {
    const coppice_window *window = p.window;
    if (window)
        p.cols = window->channels * window->kernel_y * window->kernel_x,
        p.pixels = window->out_height * window->out_width;
    const int64_t x_gap = random_below(3) * random_below(9), y_stride = p.pixels + random_below(2) * random_below(9);
    const int64_t x_stride = random_below(3) ? p.pixels + x_gap : ceiling(p.pixels, 16) * 16;
    const int64_t clamp = random_below(3), with_bias = random_below(2), residual_kind = random_below(3);
    enum { none, apart, in_place };
    const int64_t residual_stride = residual_kind == in_place ? y_stride : p.pixels + random_below(5);
    int64_t x_count = extent(p.cols, p.pixels, x_stride);
    if (window)
        x_count = window->channels && window->height ? (window->channels - 1) * window->channel_stride +
                                                           (window->height - 1) * window->row_stride + window->width
                                                     : 0;
    trial t = {.x_offset = random_below(3) / 2, .y_count = extent(p.rows, p.pixels, y_stride)};
    t.x = random_elements(p.type, x_count, t.x_offset);
    t.residual = random_elements(p.type, extent(p.rows, p.pixels, residual_stride), 1);
    t.bias = (float *)(void *)random_elements(COPPICE_F32, p.rows, 0);
    for (int64_t column = 0; column + 1 < p.cols && p.pixels && !window; column++)
        for (int64_t pixel = p.pixels; pixel < x_stride; pixel++)
            put(p.type, t.x, column * x_stride + pixel, NAN); /* between the rows: it would show in a result */
    for (int spot = 0; spot < 5 && p.special && x_count; spot++)
        put(p.type, t.x, random_below(x_count), spot % 2 ? INFINITY : NAN);

    t.lists = (coppice_weight){.layout = p.height ? COPPICE_SPARSE : COPPICE_DENSE,
                               .type = p.weight_type,
                               .rows = p.rows,
                               .cols = p.cols,
                               .slab = p.slab,
                               .height = p.height ? p.height : (int64_t)4 << random_below(3)};
    t.lists = random_weight(t.lists, p.density);
    t.args = (coppice_matmul_args){.weight = without_lists(t.lists),
                                   .type = p.type,
                                   .activation = p.activation,
                                   .arithmetic = p.arithmetic,
                                   .pixels = p.pixels,
                                   .x = t.x,
                                   .x_stride = x_stride,
                                   .window = window,
                                   .y_stride = y_stride,
                                   .bias = with_bias ? t.bias : NULL,
                                   .residual = residual_kind == none ? NULL : t.residual,
                                   .residual_stride = residual_stride,
                                   .lower = clamp > 0 ? 0 : -INFINITY,
                                   .upper = clamp > 1 ? 6 : INFINITY,
                                   .work.shares = 1};
    t.args.work.scratch_bytes = coppice_matmul_scratch(&t.args);
    t.args.work.scratch = allocate((size_t)t.args.work.scratch_bytes);
    t.expected = allocate((size_t)(p.rows * p.pixels) * sizeof(double));
    t.bound = allocate((size_t)(p.rows * p.pixels) * sizeof(double));
    for (int64_t row = 0; row < p.rows; row++)
        for (int64_t pixel = 0; pixel < p.pixels; pixel++) {
            const int64_t i = row * p.pixels + pixel;
            t.expected[i] = reference(&t, row, pixel, &t.bound[i]);
        }

    const size_t size = size_of(p.type);
    t.before = allocate((size_t)(t.y_count + 2 * guard) * size);
    t.after = allocate((size_t)(t.y_count + 2 * guard) * size);
    memset(t.before, 0x7f, (size_t)(t.y_count + 2 * guard) * size); /* 0x7f7f is NaN in binary16, huge in the others */
    t.args.y = t.after + guard * size;
    if (residual_kind == in_place) {
        memcpy(t.before + guard * size, t.residual, (size_t)t.y_count * size);
        t.args.residual = t.args.y;
    }
    return t;
}

static void free_trial(trial *t) {
    free_weight(&t->lists);
    free(t->args.work.scratch);
    free(t->x - (size_t)t->x_offset * size_of(t->args.type));
    free(t->residual - size_of(t->args.type));
    free(t->bias);
    free(t->expected);
    free(t->bound);
    free(t->before);
    free(t->after);
}

static int right_result(const trial *t) {
    for (int64_t row = 0; row < t->args.weight.rows; row++)
        for (int64_t pixel = 0; pixel < t->args.pixels; pixel++) {
            const int64_t i = row * t->args.pixels + pixel;
            const double got = get(t->args.type, t->args.y, row * t->args.y_stride + pixel);
            if (!matches(got, t->expected[i], t->bound[i])) {
                printf("  row %lld, pixel %lld: %g instead of %g, %g off at most\n", (long long)row, (long long)pixel,
                       got, t->expected[i], t->bound[i]);
                return 0;
            }
        }
    return 1;
}

static int kept_surroundings(const trial *t) {
    const size_t size = size_of(t->args.type);
    for (int64_t i = -guard; i < t->y_count + guard; i++) {
        const int inside = i >= 0 && i < t->y_count && i % t->args.y_stride < t->args.pixels;
        const size_t at = (size_t)(i + guard) * size;
        if (!inside && memcmp(t->before + at, t->after + at, size) != 0)
            return 0;
    }
    return 1;
}

/* All shares of one variant, the last one first. */
static int32_t run_shares(trial *t, int32_t index, int32_t shares) {
    int32_t status = COPPICE_OK;
    t->args.work.shares = shares;
    for (int32_t share = shares - 1; share >= 0 && status == COPPICE_OK; share--) {
        t->args.work.share = share;
        status = coppice_variant_run(index, &t->args);
    }
    return status;
}

static void check_problem(problem p) {
    trial t = make_trial(p);
    coppice_variant variant;
    for (int32_t index = 0; coppice_variant_info(index, &variant) == COPPICE_OK; index++) {
        if (strcmp(variant.primitive, "matmul") != 0 || !variant.available)
            continue;
        const int32_t shares = (int32_t)random_below(4) + 1;
        const coppice_matmul_args *args = &t.args;
        char where[240];
        snprintf(where, sizeof where,
                 "%s %s, %lld x %lld x %lld, slab %lld, density %.2f, layout %d, height %lld, types %d %d, "
                 "activation %d, arithmetic %d, %swindow, %d shares",
                 variant.primitive, variant.name, (long long)p.rows, (long long)args->weight.cols,
                 (long long)args->pixels, (long long)p.slab, p.density, (int)args->weight.layout,
                 (long long)args->weight.height, (int)p.weight_type, (int)p.type, (int)p.activation, (int)p.arithmetic,
                 p.window ? "" : "no ", (int)shares);
        memcpy(t.after, t.before, (size_t)(t.y_count + 2 * guard) * size_of(p.type));
        expect(run_shares(&t, index, shares) == COPPICE_OK, "refused", where);
        expect(right_result(&t), "wrong result", where);
        expect(kept_surroundings(&t), "wrote outside its output", where);
    }
    free_trial(&t);
}

/* --- the problems --------------------------------------------------------------------------------------------------
 */

static int64_t random_height(void) {
    static const int64_t heights[] = {0, 1, 4, 8, 16};
    return heights[random_below(5)];
}

static void check_edges(void) {
    static const int64_t rows[] = {0, 1, 2, 5, 17}, cols[] = {0, 1, 3, 70}, slabs[] = {1, 32, 65536};
    static const int64_t pixels[] = {0, 1, 2, 7, 8, 9, 15, 16, 17, 32, 47, 64, 65, 79, 80, 81, 96, 159, 160, 161, 200};
    static const double densities[] = {0, 0.3, 1};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (size_t c = 0; c < sizeof cols / sizeof *cols; c++)
            for (size_t p = 0; p < sizeof pixels / sizeof *pixels; p++)
                for (size_t s = 0; s < sizeof slabs / sizeof *slabs; s++)
                    check_problem((problem){.rows = rows[r],
                                            .cols = cols[c],
                                            .pixels = pixels[p],
                                            .slab = slabs[s],
                                            .density = densities[random_below(3)],
                                            .height = random_height(),
                                            .weight_type = (int32_t)random_below(4) * (int32_t)random_below(2),
                                            .type = (int32_t)random_below(3) * (int32_t)random_below(2)});
}

static void check_random(void) {
    for (int round = 0; round < 1200; round++)
        check_problem((problem){.rows = random_below(40),
                                .cols = random_below(300),
                                .pixels = random_below(260),
                                .slab = 1 + random_below(200),
                                .density = (double)random_below(11) / 10,
                                .height = random_height(),
                                .weight_type = (int32_t)random_below(4),
                                .type = (int32_t)random_below(3),
                                .activation = (int32_t)random_below(5),
                                .special = round % 4 == 0});
}

/* fp16 where it is allowed: sums of fp16 products, over windows too, and of more entries than fp16 can count. */
static void check_f16_sums(void) {
    for (int round = 0; round < 600; round++) {
        coppice_window w = {.channels = random_below(6),
                            .height = random_below(12),
                            .width = random_below(40),
                            .row_stride = 40,
                            .channel_stride = 480,
                            .kernel_y = 1 + random_below(4),
                            .kernel_x = 1 + random_below(4),
                            .stride_y = 1 + random_below(2),
                            .stride_x = 1 + random_below(3),
                            .dilation_y = 1 + random_below(2),
                            .dilation_x = 1,
                            .pad_y = random_below(3),
                            .pad_x = random_below(3),
                            .out_height = random_below(9),
                            .out_width = random_below(45)};
        check_problem((problem){.rows = random_below(40),
                                .cols = random_below(300),
                                .pixels = random_below(260),
                                .slab = 1 + random_below(300),
                                .density = (double)random_below(11) / 10,
                                .height = random_height(),
                                .weight_type = random_below(8) ? COPPICE_F16 : COPPICE_F32,
                                .type = random_below(8) ? COPPICE_F16 : COPPICE_F32,
                                .activation = (int32_t)random_below(5),
                                .arithmetic = COPPICE_F16,
                                .special = round % 8 == 0,
                                .window = round % 3 ? NULL : &w});
    }
}

/* The error of fp16 sums as it usually is, much below its bound: relative, root mean square. */
static void check_f16_usual_error(void) {
    trial t = make_trial((problem){.rows = 24,
                                   .cols = 500,
                                   .pixels = 60,
                                   .slab = 192,
                                   .weight_type = COPPICE_F16,
                                   .type = COPPICE_F16,
                                   .arithmetic = COPPICE_F16});
    t.args.bias = NULL, t.args.residual = NULL, t.args.lower = -INFINITY, t.args.upper = INFINITY;
    coppice_variant variant;
    for (int32_t index = 0; coppice_variant_info(index, &variant) == COPPICE_OK; index++) {
        if (strcmp(variant.primitive, "matmul") != 0 || !variant.available)
            continue;
        double errors = 0, squares = 0, bound;
        expect(run_shares(&t, index, 1) == COPPICE_OK, "refused", variant.name);
        for (int64_t row = 0; row < t.args.weight.rows; row++)
            for (int64_t pixel = 0; pixel < t.args.pixels; pixel++) {
                const double exact = reference(&t, row, pixel, &bound);
                const double off = get(COPPICE_F16, t.args.y, row * t.args.y_stride + pixel) - exact;
                errors += off * off, squares += exact * exact;
            }
        expect(sqrt(errors / squares) < 2e-3, "fp16 sums are off by more than usual", variant.name);
    }
    free_trial(&t);
}

/* fp16 cannot count beyond 2048: sums must leave it before. */
static void check_f16_count(void) {
    enum { many = 6000, pixels = 21 };
    uint16_t *ones = allocate(many * pixels * sizeof *ones), y[pixels];
    for (int64_t i = 0; i < many * pixels; i++)
        ones[i] = half_bits(COPPICE_F16, 1);
    coppice_matmul_args args = {.weight = {COPPICE_DENSE, COPPICE_F16, 1, many, 65536, 4, many, NULL, NULL, ones, NULL},
                                .type = COPPICE_F16,
                                .arithmetic = COPPICE_F16,
                                .pixels = pixels,
                                .x = ones,
                                .x_stride = pixels,
                                .y = y,
                                .y_stride = pixels,
                                .lower = -INFINITY,
                                .upper = INFINITY,
                                .work.shares = 1};
    args.work.scratch_bytes = coppice_matmul_scratch(&args);
    args.work.scratch = allocate((size_t)args.work.scratch_bytes);
    coppice_variant variant;
    for (int32_t index = 0; coppice_variant_info(index, &variant) == COPPICE_OK; index++) {
        if (strcmp(variant.primitive, "matmul") != 0 || !variant.available)
            continue;
        int counted = coppice_variant_run(index, &args) == COPPICE_OK;
        for (int pixel = 0; pixel < pixels; pixel++)
            counted &= half_value(COPPICE_F16, y[pixel]) == many;
        expect(counted, "6000 ones are not 6000", variant.name);
    }
    free(args.work.scratch), free(ones);
}

/* Every kernel, stride, dilation and pad, rows of x apart, and outputs that reach beyond x on all sides. */
static void check_windows(void) {
    for (int round = 0; round < 800; round++) {
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
        check_problem((problem){.rows = random_below(24),
                                .slab = 1 + random_below(60),
                                .density = (double)random_below(11) / 10,
                                .height = random_height(),
                                .type = (int32_t)random_below(3) * (int32_t)random_below(2),
                                .special = round % 8 == 0,
                                .window = &w});
    }
}

/* Every half goes through unharmed, and sums are rounded to the nearest: y = weight * x of one row and column. */
static void check_types(void) {
    enum { halves = 1 << 16 };
    uint16_t *x = allocate(halves * sizeof *x), *y = allocate(halves * sizeof *y);
    float *bias = allocate(halves * sizeof *bias);
    for (int32_t index = 0; index < halves; index++)
        x[index] = (uint16_t)index;
    for (int32_t type = COPPICE_F16; type <= COPPICE_BF16; type++) {
        const uint16_t one = half_bits(type, 1);
        const uint32_t starts[] = {0, 1};
        const uint16_t column = 0;
        coppice_matmul_args args = {.weight = {COPPICE_SPARSE, type, 1, 1, 1, 1, 1, starts, &column, &one, NULL},
                                    .type = type,
                                    .pixels = halves,
                                    .x = x,
                                    .x_stride = halves,
                                    .y = y,
                                    .y_stride = halves,
                                    .lower = -INFINITY,
                                    .upper = INFINITY,
                                    .work.shares = 1};
        args.work.scratch_bytes = coppice_matmul_scratch(&args);
        args.work.scratch = allocate((size_t)args.work.scratch_bytes);
        coppice_variant variant;
        for (int32_t index = 0; coppice_variant_info(index, &variant) == COPPICE_OK; index++) {
            if (strcmp(variant.primitive, "matmul") != 0 || !variant.available)
                continue;
            int same = coppice_variant_run(index, &args) == COPPICE_OK, nearest = 1;
            for (int32_t i = 0; i < halves; i++)
                same &= isnan(half_value(type, x[i])) ? isnan(half_value(type, y[i]))
                                                      : half_value(type, x[i]) == half_value(type, y[i]);
            expect(same, "a half changed on its way", variant.name);
            for (int round = 0; round < 3000; round++) {
                uint32_t bits = random_bits();
                if (round % 3 == 0)
                    bits = (bits & 0xffffe000) | 0x1000; /* half way between two halves */
                float value;
                memcpy(&value, &bits, sizeof value);
                if (isnan(value))
                    continue;
                coppice_matmul_args single = args;
                const uint16_t nothing = 0;
                single.pixels = 1, single.x = &nothing, single.bias = &value;
                nearest &= coppice_variant_run(index, &single) == COPPICE_OK && y[0] == half_bits(type, value);
            }
            expect(nearest, "not rounded to the nearest half", variant.name);
        }
        free(args.work.scratch);
    }
    free(x), free(y), free(bias);
}

/* Rows of shapes.csv: model,layer,rows,cols,pixels,count. All panels beyond the third are alike: pixels are capped. */
static void check_real(const char *path) {
    FILE *file = fopen(path, "r");
    char line[256];
    int shapes = 0;
    while (file && fgets(line, sizeof line, file)) {
        long long rows, cols, pixels;
        if (sscanf(line, "%*[^,],%*[^,],%lld,%lld,%lld", &rows, &cols, &pixels) != 3)
            continue; /* the header */
        shapes++;
        check_problem((problem){.rows = rows,
                                .cols = cols,
                                .pixels = pixels < 210 ? pixels : 210,
                                .slab = 192,
                                .density = 0.1,
                                .height = random_height()});
    }
    if (file)
        fclose(file);
    expect(shapes > 0, "no shapes in", path);
}

/* --- what must be refused ------------------------------------------------------------------------------------------
 */

static void expect_status(int64_t got, int32_t expected, const char *what) {
    char where[160];
    snprintf(where, sizeof where, "%s: expected \"%s\", got \"%s\"", what, coppice_status_text(expected),
             coppice_status_text((int32_t)got));
    expect(got == expected, "status", where);
}

#define REFUSED(expected, change)                                                                                      \
    do {                                                                                                               \
        coppice_matmul_args args = t.args;                                                                             \
        change;                                                                                                        \
        expect_status(coppice_matmul(&args), expected, #change);                                                       \
    } while (0)

static void check_arguments(void) {
    trial t = make_trial((problem){.rows = 4, .cols = 6, .pixels = 20, .slab = 3, .density = 0.5, .height = 1});
    t.args.bias = t.bias;
    t.args.residual = t.residual;
    REFUSED(COPPICE_OK, args.lower = 0);
    REFUSED(COPPICE_LAYOUT, args.weight.layout = 7);
    REFUSED(COPPICE_LAYOUT, args.weight.height = 2);
    REFUSED(COPPICE_LAYOUT, args.weight.layout = COPPICE_DENSE);
    REFUSED(COPPICE_TYPE, args.weight.type = 4);
    REFUSED(COPPICE_TYPE, args.type = COPPICE_I8);
    REFUSED(COPPICE_TYPE, args.type = -1);
    REFUSED(COPPICE_OK, args.arithmetic = COPPICE_F16);
    REFUSED(COPPICE_TYPE, args.arithmetic = COPPICE_BF16);
    REFUSED(COPPICE_TYPE, args.arithmetic = -1);
    REFUSED(COPPICE_ACTIVATION, args.activation = 5);
    REFUSED(COPPICE_ACTIVATION, args.activation = -1);
    REFUSED(COPPICE_SHARE, args.work.share = 1);
    REFUSED(COPPICE_SHARE, args.work.share = -1);
    REFUSED(COPPICE_SHARE, args.work.shares = 0);
    REFUSED(COPPICE_SIZE, args.weight.rows = -1);
    REFUSED(COPPICE_SIZE, args.weight.rows = INT64_MAX);
    REFUSED(COPPICE_SIZE, args.weight.cols = -1);
    REFUSED(COPPICE_SIZE, args.weight.cols = (int64_t)1 << 31);
    REFUSED(COPPICE_SIZE, args.weight.slab = 0);
    REFUSED(COPPICE_SIZE, args.weight.slab = 65537);
    REFUSED(COPPICE_SIZE, args.weight.entries = -1);
    REFUSED(COPPICE_SIZE, args.weight.entries = (int64_t)1 << 32);
    REFUSED(COPPICE_SIZE, args.pixels = -1);
    REFUSED(COPPICE_SIZE, args.pixels = INT64_MAX);
    REFUSED(COPPICE_NULL, args.weight.starts = NULL);
    REFUSED(COPPICE_NULL, args.weight.columns = NULL);
    REFUSED(COPPICE_NULL, args.weight.values = NULL);
    REFUSED(COPPICE_NULL, args.x = NULL);
    REFUSED(COPPICE_NULL, args.y = NULL);
    REFUSED(COPPICE_NULL, args.work.scratch = NULL);
    REFUSED(COPPICE_ALIGNMENT, args.x = (const char *)args.x + 1);
    REFUSED(COPPICE_ALIGNMENT, args.y = (char *)args.y + 2);
    REFUSED(COPPICE_ALIGNMENT, args.bias = (const float *)(const void *)((const char *)args.bias + 3));
    REFUSED(COPPICE_ALIGNMENT, args.residual = (const char *)args.residual + 1);
    REFUSED(COPPICE_ALIGNMENT,
            args.weight.starts = (const uint32_t *)(const void *)((const char *)args.weight.starts + 2));
    REFUSED(COPPICE_ALIGNMENT, args.weight.values = (const char *)args.weight.values + 2);
    REFUSED(COPPICE_STRIDE, args.x_stride = 19);
    REFUSED(COPPICE_STRIDE, args.x_stride = INT64_MAX);
    REFUSED(COPPICE_STRIDE, args.y_stride = -20);
    REFUSED(COPPICE_STRIDE, args.residual_stride = 0);
    REFUSED(COPPICE_CLAMP, (args.lower = 1, args.upper = 0));
    REFUSED(COPPICE_CLAMP, args.upper = NAN);
    REFUSED(COPPICE_SCRATCH, args.work.scratch_bytes--);
    expect_status(coppice_matmul(NULL), COPPICE_NULL, "arguments");
    expect_status(coppice_matmul_scratch(NULL), COPPICE_NULL, "arguments of scratch");
    free_trial(&t);
}

#define WINDOW_REFUSED(expected, change)                                                                               \
    do {                                                                                                               \
        coppice_window changed = window;                                                                               \
        coppice_matmul_args args = t.args;                                                                             \
        args.window = &changed;                                                                                        \
        change;                                                                                                        \
        expect_status(coppice_matmul(&args), expected, #change);                                                       \
    } while (0)

static void check_window_arguments(void) {
    const coppice_window window = {3, 5, 6, 7, 40, 2, 2, 1, 1, 1, 1, 0, 0, 4, 5};
    trial t = make_trial((problem){.rows = 4, .slab = 8, .density = 0.5, .height = 4, .window = &window});
    WINDOW_REFUSED(COPPICE_OK, changed.pad_y = 1);
    WINDOW_REFUSED(COPPICE_WINDOW, changed.kernel_x = 3);
    WINDOW_REFUSED(COPPICE_WINDOW, changed.channels = INT32_MAX);
    WINDOW_REFUSED(COPPICE_WINDOW, changed.out_height = 5);
    WINDOW_REFUSED(COPPICE_SIZE, changed.stride_x = 0);
    WINDOW_REFUSED(COPPICE_SIZE, changed.dilation_y = 0);
    WINDOW_REFUSED(COPPICE_SIZE, changed.kernel_y = -1);
    WINDOW_REFUSED(COPPICE_SIZE, changed.pad_x = -1);
    WINDOW_REFUSED(COPPICE_SIZE, changed.pad_x = INT64_MAX);
    WINDOW_REFUSED(COPPICE_SIZE, changed.width = -1);
    WINDOW_REFUSED(COPPICE_STRIDE, changed.row_stride = 5);
    WINDOW_REFUSED(COPPICE_STRIDE, changed.channel_stride = 33);
    WINDOW_REFUSED(COPPICE_STRIDE, changed.row_stride = INT64_MAX);
    WINDOW_REFUSED(COPPICE_STRIDE, changed.channel_stride = INT64_MAX);
    WINDOW_REFUSED(COPPICE_NULL, args.x = NULL);
    WINDOW_REFUSED(COPPICE_ALIGNMENT, args.x = (const char *)args.x + 2);
    free_trial(&t);
}

static void check_weights(void) {
    const uint32_t starts[] = {0, 1, 3, 3, 4}, falling[] = {0, 3, 1, 3, 4}, late[] = {1, 1, 3, 3, 4};
    const uint16_t columns[] = {2, 0, 1, 1}, repeated[] = {2, 1, 1, 1}, outside[] = {3, 0, 1, 1}, past[] = {2, 0, 1, 2};
    const float values[] = {1, 2, 3, 4};
    const coppice_weight good = {COPPICE_SPARSE, COPPICE_F32, 2, 5, 3, 1, 4, starts, columns, values, NULL};
    coppice_weight bad = good;
    expect_status(coppice_weight_validate(&good), COPPICE_OK, "good weight");
    expect_status(coppice_weight_validate(NULL), COPPICE_NULL, "no weight");
    bad.starts = falling;
    expect_status(coppice_weight_validate(&bad), COPPICE_STARTS, "falling starts");
    bad.starts = late;
    expect_status(coppice_weight_validate(&bad), COPPICE_STARTS, "starts past zero");
    bad = good, bad.entries = 5;
    expect_status(coppice_weight_validate(&bad), COPPICE_STARTS, "starts short of entries");
    bad = good, bad.columns = repeated;
    expect_status(coppice_weight_validate(&bad), COPPICE_COLUMNS, "repeated column");
    bad.columns = outside;
    expect_status(coppice_weight_validate(&bad), COPPICE_COLUMNS, "column outside its slab");
    bad.columns = past;
    expect_status(coppice_weight_validate(&bad), COPPICE_COLUMNS, "column outside the matrix");
    bad = good, bad.rows = 0, bad.cols = 0, bad.entries = 0, bad.columns = NULL, bad.values = NULL;
    expect_status(coppice_weight_validate(&bad), COPPICE_OK, "empty weight");
    bad = good, bad.layout = COPPICE_DENSE, bad.height = 4;
    expect_status(coppice_weight_validate(&bad), COPPICE_STARTS, "dense weight of too few entries");
}

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

/* --- threads --------------------------------------------------------------------------------------------------------
 */

static void check_pool(void) {
    trial t = make_trial((problem){.rows = 37, .cols = 90, .pixels = 333, .slab = 40, .density = 0.3, .height = 4});
    for (int32_t threads = 1; threads <= 5; threads++) {
        const int64_t bytes = coppice_pool_bytes(threads);
        coppice_pool *pool = allocate((size_t)bytes);
        expect_status(coppice_pool_start(pool, bytes, threads), COPPICE_OK, "starting a pool");
        coppice_matmul_args args = t.args;
        args.work.scratch_bytes = coppice_matmul_scratch(&args) * threads;
        args.work.scratch = allocate((size_t)args.work.scratch_bytes);
        coppice_variant variant;
        for (int32_t index = 0; coppice_variant_info(index, &variant) == COPPICE_OK; index++) {
            if (strcmp(variant.primitive, "matmul") != 0 || !variant.available)
                continue;
            for (int round = 0; round < 50; round++) {
                memcpy(t.after, t.before, (size_t)(t.y_count + 2 * guard) * size_of(t.args.type));
                expect_status(coppice_pool_run(pool, index, &args), COPPICE_OK, "running in a pool");
                expect(right_result(&t) && kept_surroundings(&t), "wrong result in a pool", variant.name);
                if (round % 10 == 9) { /* long enough for the threads to fall asleep */
                    const struct timespec pause = {0, 1000000};
                    nanosleep(&pause, NULL);
                }
            }
        }
        args.work.scratch_bytes -= 64 * threads;
        expect_status(coppice_pool_run(pool, 0, &args), COPPICE_SCRATCH, "too little scratch for all threads");
        expect_status(coppice_pool_run(pool, -1, &args), COPPICE_VARIANT_UNKNOWN, "no such variant in a pool");
        expect_status(coppice_pool_run(pool, 0, NULL), COPPICE_NULL, "no arguments in a pool");
        expect_status(coppice_pool_stop(pool), COPPICE_OK, "stopping a pool");
        expect_status(coppice_pool_run(pool, 0, &args), COPPICE_BUSY, "a pool that was stopped");
        free(args.work.scratch);
        free(pool);
    }
    expect_status(coppice_pool_bytes(0), COPPICE_THREADS, "no threads");
    expect_status(coppice_pool_bytes(257), COPPICE_THREADS, "too many threads");
    expect_status(coppice_pool_start(NULL, 1 << 20, 2), COPPICE_NULL, "no memory for a pool");
    coppice_pool *memory = allocate((size_t)coppice_pool_bytes(2));
    expect_status(coppice_pool_start(memory, 64, 2), COPPICE_SCRATCH, "little memory for a pool");
    expect_status(coppice_pool_start((coppice_pool *)(void *)((char *)memory + 8), 1 << 20, 2), COPPICE_ALIGNMENT,
                  "a pool off its line");
    free(memory);
    free_trial(&t);
}

int main(int count, char **arguments) {
    check_dispatch();
    check_arguments();
    check_window_arguments();
    check_weights();
    check_types();
    check_edges();
    check_random();
    check_windows();
    check_f16_sums();
    check_f16_usual_error();
    check_f16_count();
    check_pool();
    if (count > 1)
        check_real(arguments[1]);
    printf("check: %d expectations, %d failed, up to %s\n", expectations, failures,
           coppice_isa_name(coppice_isa_active()));
    return failures > 0;
}
