/* check [SHAPES.csv]: every variant that this machine can run, against fp64, on edge, random and real shapes.
 *
 * Inputs end where their allocation ends, so the address sanitizer sees a read too many; outputs stand between guards,
 * so a write too many is seen without it. Prints one line a failure, then a summary; exit status 1 after a failure. */
#define _POSIX_C_SOURCE 200112L
#include "abi.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    const float magnitude = (float)(1 << random_below(8)) / 16;
    return random_below(64) ? ((float)random_bits() / 2147483648.0f - 1) * magnitude : 0;
}

static void *allocate(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes ? bytes : 1) != 0)
        abort();
    return memory;
}

/* `count` floats that start `offset` floats past a cache line; free(result - offset). */
static float *random_floats(int64_t count, int64_t offset) {
    float *memory = allocate((size_t)(count + offset) * sizeof(float));
    for (int64_t i = 0; i < count; i++)
        memory[offset + i] = random_value();
    return memory + offset;
}

/* Elements from the first of a matrix to one past its last. */
static int64_t extent(int64_t rows, int64_t pixels, int64_t stride) {
    return rows && pixels ? (rows - 1) * stride + pixels : 0;
}

static coppice_csr_f32 random_weight(int64_t rows, int64_t cols, int64_t slab, double density) {
    const int64_t slabs = cols > slab ? (cols + slab - 1) / slab : 1;
    const size_t room = (size_t)(rows * cols);
    uint32_t *starts = allocate((size_t)(slabs * rows + 1) * sizeof *starts), entries = 0;
    uint16_t *columns = allocate(room * sizeof *columns);
    float *values = allocate(room * sizeof *values);
    starts[0] = 0;
    for (int64_t list = 0; list < slabs * rows; list++) {
        const int64_t first = list / rows * slab;
        for (int64_t column = first; column < cols && column < first + slab; column++) {
            if (random_bits() >= density * 4294967296.0)
                continue;
            columns[entries] = (uint16_t)(column - first);
            values[entries++] = random_value();
        }
        starts[list + 1] = entries;
    }
    return (coppice_csr_f32){COPPICE_SLAB_CSR, rows, cols, slab, entries, starts, columns, values};
}

static void free_weight(coppice_csr_f32 *weight) {
    free((void *)weight->starts);
    free((void *)weight->columns);
    free((void *)weight->values);
}

/* --- one problem, all variants -------------------------------------------------------------------------------------
 */

typedef struct problem {
    int64_t rows, cols, pixels, slab;
    double density;
    int special; /* some infinities and NaN in x */
} problem;

/* A problem made concrete: arguments, what y must hold and how far off it may be, and all of y with its guards. */
typedef struct trial {
    coppice_spmm_f32_args args;
    float *x, *residual, *bias;
    int64_t x_offset, y_count;
    double *expected, *bound; /* [rows][pixels] */
    uint32_t *before, *after; /* guard, y_count, guard */
} trial;

/* The value in fp64. Of n products, the bias and the residual, each of the n + 2 roundings errs by at most half an
 * epsilon of the sum of magnitudes; the bound is twice that. */
static double reference(const coppice_spmm_f32_args *args, int64_t row, int64_t pixel, double *bound) {
    const coppice_csr_f32 *weight = &args->weight;
    const int64_t slabs = weight->cols > weight->slab ? (weight->cols + weight->slab - 1) / weight->slab : 1;
    const double bias = args->bias ? (double)args->bias[row] : 0;
    const double residual = args->residual ? (double)args->residual[row * args->residual_stride + pixel] : 0;
    double sum = bias + residual, magnitude = fabs(bias) + fabs(residual), terms = 2;
    for (int64_t slab = 0; slab < slabs; slab++) {
        const uint32_t *starts = weight->starts + slab * weight->rows + row;
        for (uint32_t entry = starts[0]; entry < starts[1]; entry++, terms++) {
            const int64_t column = slab * weight->slab + weight->columns[entry];
            const double product = (double)weight->values[entry] * (double)args->x[column * args->x_stride + pixel];
            sum += product;
            magnitude += fabs(product);
        }
    }
    *bound = terms * (double)FLT_EPSILON * magnitude + (double)FLT_MIN;
    sum = sum < (double)args->lower ? (double)args->lower : sum;
    return sum > (double)args->upper ? (double)args->upper : sum;
}

static int matches(float got, double expected, double bound) {
    if (isnan(expected) || isinf(expected))
        return isnan(expected) ? isnan(got) : (double)got == expected;
    return fabs((double)got - expected) <= bound;
}

static trial make_trial(problem p) {
    const int64_t x_gap = random_below(3) * random_below(9), y_stride = p.pixels + random_below(2) * random_below(9);
    const int64_t x_stride = random_below(3) ? p.pixels + x_gap : (p.pixels + 15) / 16 * 16;
    const int64_t clamp = random_below(3), with_bias = random_below(2), residual_kind = random_below(3);
    enum { none, apart, in_place };
    const int64_t residual_stride = residual_kind == in_place ? y_stride : p.pixels + random_below(5);
    trial t = {.x_offset = random_below(3) / 2, .y_count = extent(p.rows, p.pixels, y_stride)};
    t.x = random_floats(extent(p.cols, p.pixels, x_stride), t.x_offset);
    t.residual = random_floats(extent(p.rows, p.pixels, residual_stride), 1);
    t.bias = random_floats(p.rows, 0);
    for (int64_t column = 0; column + 1 < p.cols && p.pixels; column++)
        for (int64_t pixel = p.pixels; pixel < x_stride; pixel++)
            t.x[column * x_stride + pixel] = NAN; /* between the rows: it would show in a result */
    for (int spot = 0; spot < 5 && p.special && p.cols && p.pixels; spot++)
        t.x[random_below(p.cols) * x_stride + random_below(p.pixels)] = spot % 2 ? INFINITY : NAN;

    t.args = (coppice_spmm_f32_args){.weight = random_weight(p.rows, p.cols, p.slab, p.density),
                                     .pixels = p.pixels,
                                     .x = t.x,
                                     .x_stride = x_stride,
                                     .y_stride = y_stride,
                                     .bias = with_bias ? t.bias : NULL,
                                     .residual = residual_kind == none ? NULL : t.residual,
                                     .residual_stride = residual_stride,
                                     .lower = clamp > 0 ? 0 : -INFINITY,
                                     .upper = clamp > 1 ? 6 : INFINITY};
    t.args.scratch_bytes = coppice_spmm_f32_scratch(&t.args);
    t.args.scratch = allocate((size_t)t.args.scratch_bytes);
    t.expected = allocate((size_t)(p.rows * p.pixels) * sizeof(double));
    t.bound = allocate((size_t)(p.rows * p.pixels) * sizeof(double));
    for (int64_t row = 0; row < p.rows; row++)
        for (int64_t pixel = 0; pixel < p.pixels; pixel++) {
            const int64_t i = row * p.pixels + pixel;
            t.expected[i] = reference(&t.args, row, pixel, &t.bound[i]);
        }

    t.before = allocate((size_t)(t.y_count + 2 * guard) * sizeof(uint32_t));
    t.after = allocate((size_t)(t.y_count + 2 * guard) * sizeof(uint32_t));
    for (int64_t i = 0; i < t.y_count + 2 * guard; i++)
        t.before[i] = 0x7fa5a5a5; /* a NaN: it would show in a result too */
    t.args.y = (float *)t.after + guard;
    if (residual_kind == in_place) {
        memcpy(t.before + guard, t.residual, (size_t)t.y_count * sizeof(float));
        t.args.residual = t.args.y;
    }
    return t;
}

static void free_trial(trial *t) {
    free_weight(&t->args.weight);
    free(t->args.scratch);
    free(t->x - t->x_offset);
    free(t->residual - 1);
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
            if (!matches(t->args.y[row * t->args.y_stride + pixel], t->expected[i], t->bound[i]))
                return 0;
        }
    return 1;
}

static int kept_surroundings(const trial *t) {
    for (int64_t i = -guard; i < t->y_count + guard; i++) {
        const int inside = i >= 0 && i < t->y_count && i % t->args.y_stride < t->args.pixels;
        if (!inside && t->before[i + guard] != t->after[i + guard])
            return 0;
    }
    return 1;
}

static void check_problem(problem p) {
    trial t = make_trial(p);
    coppice_variant variant;
    for (int32_t index = 0; coppice_variant_info(index, &variant) == COPPICE_OK; index++) {
        if (strcmp(variant.primitive, "spmm_f32") != 0 || !variant.available)
            continue;
        char where[160];
        snprintf(where, sizeof where, "%s %s, %lld x %lld x %lld, slab %lld, density %.2f", variant.primitive,
                 variant.name, (long long)p.rows, (long long)p.cols, (long long)p.pixels, (long long)p.slab, p.density);
        memcpy(t.after, t.before, (size_t)(t.y_count + 2 * guard) * sizeof(uint32_t));
        expect(coppice_variant_run(index, &t.args) == COPPICE_OK, "refused", where);
        expect(right_result(&t), "wrong result", where);
        expect(kept_surroundings(&t), "wrote outside its output", where);
    }
    free_trial(&t);
}

/* --- the problems --------------------------------------------------------------------------------------------------
 */

static void check_edges(void) {
    static const int64_t rows[] = {0, 1, 2, 5}, cols[] = {0, 1, 3, 70}, slabs[] = {1, 32, 65536};
    static const int64_t pixels[] = {0, 1, 2, 7, 8, 9, 15, 16, 17, 32, 47, 64, 65, 79, 80, 81, 159, 160, 161, 200};
    static const double densities[] = {0, 0.3, 1};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (size_t c = 0; c < sizeof cols / sizeof *cols; c++)
            for (size_t p = 0; p < sizeof pixels / sizeof *pixels; p++)
                for (size_t s = 0; s < sizeof slabs / sizeof *slabs; s++)
                    for (size_t d = 0; d < sizeof densities / sizeof *densities; d++)
                        check_problem((problem){rows[r], cols[c], pixels[p], slabs[s], densities[d], 0});
}

static void check_random(void) {
    for (int round = 0; round < 400; round++) {
        const problem p = {random_below(40),
                           random_below(300),
                           random_below(260),
                           1 + random_below(200),
                           (double)random_below(11) / 10,
                           round % 4 == 0};
        check_problem(p);
    }
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
        check_problem((problem){rows, cols, pixels < 210 ? pixels : 210, 192, 0.1, 0});
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
        coppice_spmm_f32_args args = t.args;                                                                           \
        change;                                                                                                        \
        expect_status(coppice_spmm_f32(&args), expected, #change);                                                     \
    } while (0)

static void check_arguments(void) {
    trial t = make_trial((problem){4, 6, 20, 3, 0.5, 0});
    t.args.bias = t.bias;
    t.args.residual = t.residual;
    REFUSED(COPPICE_OK, args.lower = 0);
    REFUSED(COPPICE_LAYOUT, args.weight.layout = 7);
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
    REFUSED(COPPICE_NULL, args.scratch = NULL);
    REFUSED(COPPICE_ALIGNMENT, args.x = (const float *)((const char *)args.x + 1));
    REFUSED(COPPICE_ALIGNMENT, args.y = (float *)((char *)args.y + 2));
    REFUSED(COPPICE_ALIGNMENT, args.bias = (const float *)((const char *)args.bias + 3));
    REFUSED(COPPICE_ALIGNMENT, args.residual = (const float *)((const char *)args.residual + 1));
    REFUSED(COPPICE_ALIGNMENT, args.weight.starts = (const uint32_t *)((const char *)args.weight.starts + 2));
    REFUSED(COPPICE_STRIDE, args.x_stride = 19);
    REFUSED(COPPICE_STRIDE, args.x_stride = INT64_MAX);
    REFUSED(COPPICE_STRIDE, args.y_stride = -20);
    REFUSED(COPPICE_STRIDE, args.residual_stride = 0);
    REFUSED(COPPICE_CLAMP, (args.lower = 1, args.upper = 0));
    REFUSED(COPPICE_CLAMP, args.upper = NAN);
    REFUSED(COPPICE_SCRATCH, args.scratch_bytes--);
    expect_status(coppice_spmm_f32(NULL), COPPICE_NULL, "arguments");
    expect_status(coppice_spmm_f32_scratch(NULL), COPPICE_NULL, "arguments of scratch");
    free_trial(&t);
}

static void check_weights(void) {
    const uint32_t starts[] = {0, 1, 3, 3, 4}, falling[] = {0, 3, 1, 3, 4}, late[] = {1, 1, 3, 3, 4};
    const uint16_t columns[] = {2, 0, 1, 1}, repeated[] = {2, 1, 1, 1}, outside[] = {3, 0, 1, 1}, past[] = {2, 0, 1, 2};
    const float values[] = {1, 2, 3, 4};
    const coppice_csr_f32 good = {COPPICE_SLAB_CSR, 2, 5, 3, 4, starts, columns, values};
    coppice_csr_f32 bad = good;
    expect_status(coppice_csr_validate(&good), COPPICE_OK, "good weight");
    expect_status(coppice_csr_validate(NULL), COPPICE_NULL, "no weight");
    bad.starts = falling;
    expect_status(coppice_csr_validate(&bad), COPPICE_STARTS, "falling starts");
    bad.starts = late;
    expect_status(coppice_csr_validate(&bad), COPPICE_STARTS, "starts past zero");
    bad = good, bad.entries = 5;
    expect_status(coppice_csr_validate(&bad), COPPICE_STARTS, "starts short of entries");
    bad = good, bad.columns = repeated;
    expect_status(coppice_csr_validate(&bad), COPPICE_COLUMNS, "repeated column");
    bad.columns = outside;
    expect_status(coppice_csr_validate(&bad), COPPICE_COLUMNS, "column outside its slab");
    bad.columns = past;
    expect_status(coppice_csr_validate(&bad), COPPICE_COLUMNS, "column outside the matrix");
    bad = good, bad.rows = 0, bad.cols = 0, bad.entries = 0, bad.columns = NULL, bad.values = NULL;
    expect_status(coppice_csr_validate(&bad), COPPICE_OK, "empty weight");
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

int main(int count, char **arguments) {
    check_dispatch();
    check_arguments();
    check_weights();
    check_edges();
    check_random();
    if (count > 1)
        check_real(arguments[1]);
    printf("check: %d expectations, %d failed, up to %s\n", expectations, failures,
           coppice_isa_name(coppice_isa_active()));
    return failures > 0;
}
