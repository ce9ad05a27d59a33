/* A libFuzzer target for what takes weights from strangers: bytes become a coppice_weight whose arrays have exactly the
 * sizes that abi.h gives them, so that the address sanitizer sees any read past one. What coppice_weight_validate lets
 * through is multiplied by in every variant, and as straight-line code, and the results are compared. `make
 * fuzz-weights` builds and runs it. */
#define _DEFAULT_SOURCE /* mmap of no file */
#include "kernels.h"

#include <float.h>
#include <math.h>
#include <sanitizer/asan_interface.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { most_elements = 1 << 17, guard = 64 };

/* The bytes of the fuzzer, then, so that short inputs make whole weights, those of a generator that they began. */
typedef struct source {
    const uint8_t *at, *end;
    uint32_t state;
} source;

static uint32_t byte(source *s) {
    if (s->at < s->end) {
        s->state = (s->state ^ *s->at) * 16777619u;
        return *s->at++;
    }
    s->state = s->state * 1664525u + 1013904223u;
    return s->state >> 24;
}

static uint64_t bytes(source *s, int count) {
    uint64_t all = 0;
    for (int i = 0; i < count; i++)
        all = all << 8 | byte(s);
    return all;
}

static int64_t below(source *s, int64_t limit) {
    return (int64_t)(bytes(s, limit > 256 ? 3 : 1) % (uint64_t)limit);
}

/* A size that no honest file has: at a limit of a type, or anything. */
static int64_t strange(source *s) {
    static const int64_t limits[] = {-1,         0,         1,         INT32_MAX, (int64_t)1 << 31,
                                     UINT32_MAX, INT64_MAX, INT64_MIN, 65536,     65537};
    const int64_t which = below(s, 16);
    return which < 10 ? limits[which] : (int64_t)bytes(s, 8);
}

/* --- the weight ---------------------------------------------------------------------------------------------------
 */

static coppice_weight random_sizes(source *s) {
    static const int64_t heights[] = {1, 4, 8, 16};
    coppice_weight w = {.layout = (int32_t)below(s, 2), .type = (int32_t)below(s, 4), .height = heights[below(s, 4)]};
    w.rows = below(s, 34);
    w.cols = below(s, 100);
    w.slab = below(s, 4) ? 1 + below(s, w.cols + 1) : 1 + below(s, COPPICE_SLAB_MAX);
    if (w.layout == COPPICE_DENSE && w.height == 1)
        w.height = 4;
    switch (below(s, 32)) {
    case 1:
        w.layout = (int32_t)strange(s);
        break;
    case 2:
        w.type = (int32_t)strange(s);
        break;
    case 3:
        w.rows = strange(s);
        break;
    case 4:
        w.cols = strange(s);
        break;
    case 5:
        w.slab = strange(s);
        break;
    case 6:
        w.height = strange(s);
        break;
    case 7:
        w.cols = below(s, 1 << 18); /* more than a column can say */
        break;
    case 8:
        w.rows = below(s, 3000);
        break;
    default:
        break;
    }
    return w;
}

/* Bands times slabs and bands times columns, where the sizes may be those of a weight; else 0, since whoever looks at
 * the arrays of such a weight is wrong. */
static int64_t products(const coppice_weight *w, int64_t *places) {
    const int sizes = w->rows >= 0 && w->rows <= INT32_MAX && w->cols >= 0 && w->cols <= INT32_MAX && w->slab >= 1 &&
                      w->slab <= COPPICE_SLAB_MAX && w->height >= 1 && w->height <= 16;
    *places = sizes ? coppice_bands(w) * w->cols : 0;
    return sizes ? coppice_bands(w) * coppice_slabs(w) : 0;
}

/* NULL where there would be more than a test can hold. */
static void *array(int64_t count, int64_t size) {
    return count < 0 || count > most_elements || size < 0 || size > 64 ? NULL : malloc((size_t)(count * size));
}

/* Numbers whose sums are exact to a few digits, and now and then any bits at all. */
static void fill(source *s, int32_t type, void *data, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const float value = (float)(int8_t)byte(s) / 32;
        if (type == COPPICE_I8)
            ((int8_t *)data)[i] = (int8_t)byte(s);
        else if (byte(s) >= 2)
            coppice_store(type, data, i, value);
        else if (type == COPPICE_F32)
            ((uint32_t *)data)[i] = (uint32_t)bytes(s, 4);
        else
            ((uint16_t *)data)[i] = (uint16_t)bytes(s, 2);
    }
}

/* Lists and their columns as they should be, and a few of both changed to what they should not. */
static void fill_lists(source *s, coppice_weight *w, int64_t lists, int64_t places) {
    static uint16_t room[most_elements];
    const uint32_t density = byte(s);
    uint32_t *starts = array(lists + 1, sizeof *starts);
    w->starts = starts;
    if (!starts || places > most_elements)
        return;
    starts[0] = 0;
    for (int64_t list = 0; list < lists; list++) {
        const int64_t width = coppice_slab_width(w, list / coppice_bands(w));
        for (int64_t column = 0; column < width; column++)
            if (byte(s) <= density)
                room[w->entries++] = (uint16_t)column;
        starts[list + 1] = (uint32_t)w->entries;
    }
    const int64_t real = w->entries;
    int64_t changes = below(s, 8) ? 0 : 1 + below(s, 3);
    if (changes && below(s, 4) == 0)
        w->entries = below(s, 2) ? strange(s) : w->entries + below(s, 5) - 2;
    uint16_t *columns = array(w->entries, sizeof *columns);
    w->columns = columns;
    for (int64_t entry = 0; columns && entry < w->entries; entry++)
        columns[entry] = entry < real ? room[entry] : (uint16_t)bytes(s, 2);
    for (; changes > 0; changes--) {
        if (below(s, 2))
            starts[below(s, lists + 1)] = (uint32_t)(below(s, 2) ? bytes(s, 4) : bytes(s, 1));
        else if (columns && w->entries > 0)
            columns[below(s, w->entries)] = (uint16_t)(below(s, 2) ? bytes(s, 2) : bytes(s, 1));
    }
}

/* The blocks of memory that a weight lies in. */
typedef struct blocks {
    void *starts, *columns, *values, *scales;
} blocks;

static blocks fill_weight(source *s, coppice_weight *w) {
    int64_t places, lists = products(w, &places);
    if (w->layout == COPPICE_DENSE)
        w->entries = below(s, 16) ? places : strange(s);
    else
        fill_lists(s, w, lists, places);
    const int64_t size = (int64_t)coppice_type_size(w->type);
    const int held_by_one = w->height > 0 && w->height <= 16 && w->entries >= 0 && w->entries <= most_elements;
    const int64_t count = held_by_one ? w->entries * w->height : -1;
    void *values = array(count, size);
    float *scales = below(s, 3) && w->type != COPPICE_I8 ? NULL : array(w->rows, sizeof *scales);
    if (values && size)
        fill(s, w->type, values, count);
    if (scales)
        fill(s, COPPICE_F32, scales, w->rows);
    w->values = values, w->scales = scales;
    const blocks held = {(void *)w->starts, (void *)w->columns, values, scales};
    switch (below(s, 64)) {
    case 1:
        w->starts = NULL;
        break;
    case 2:
        w->columns = NULL;
        break;
    case 3:
        w->values = NULL;
        break;
    case 4:
        w->starts = w->starts ? (const uint32_t *)(const void *)((const char *)w->starts + 2) : NULL;
        break;
    case 5:
        w->columns = w->columns ? (const uint16_t *)(const void *)((const char *)w->columns + 1) : NULL;
        break;
    case 6:
        w->values = values && size > 1 ? (const char *)values + 1 : NULL;
        break;
    case 7:
        w->scales = scales ? (const float *)(const void *)((const char *)scales + 1) : NULL;
        break;
    default:
        break;
    }
    return held;
}

/* --- what is done with it -----------------------------------------------------------------------------------------
 */

/* How far two variants may be apart in a row of y, before rounding to its type, where no finite x is above `largest`;
 * NaN: anything goes, because a sum may overflow, or a product or a scaled value underflow, in one of them alone. */
static double apart(const coppice_matmul_args *args, int64_t row, double largest) {
    const coppice_weight *w = &args->weight;
    const double scale = w->scales ? fabs((double)w->scales[row]) : 1;
    const double bias = args->bias && isfinite(args->bias[row]) ? fabs((double)args->bias[row]) : 0;
    double magnitude = 0, terms = 3;
    if (!isfinite(scale) || scale > 0x1p60 || (scale != 0 && scale < 0x1p-60))
        return NAN;
    for (int64_t slab = 0; slab < coppice_slabs(w); slab++) {
        const size_t first = coppice_first_entry(w, slab, row / w->height);
        const size_t end = first + coppice_entries(w, slab, row / w->height);
        for (size_t entry = first; entry < end; entry++, terms++) {
            const int64_t index = (int64_t)entry * w->height + row % w->height;
            const double value = fabs((double)coppice_load(w->type, w->values, index));
            if (value != 0 && value < 0x1p-60)
                return NAN;
            magnitude += isfinite(value) ? value * largest : 0;
        }
    }
    const double all = magnitude * scale + bias + largest; /* residual is no larger than x */
    if (magnitude > 1e30 || all > 1e30)
        return NAN;
    return 4 * terms * ((double)FLT_EPSILON * all + (double)FLT_MIN * fmax(1, scale)) + 2e-6 * (1 + all);
}

/* The largest finite magnitude among `count` elements, at least `least`. */
static double largest_of(int32_t type, const void *data, int64_t count, double least) {
    for (int64_t i = 0; i < count; i++) {
        const double value = fabs((double)coppice_load(type, data, i));
        least = isfinite(value) && value > least ? value : least;
    }
    return least;
}

/* y between guards, which instrumented code may not touch and code that was written just now does not; what the
 * reference made of it; how far off its rows may be. */
typedef struct result {
    char *memory, *y, *expected;
    double *off;
    size_t size; /* of y */
} result;

static void compare(const coppice_matmul_args *args, const result *to, const char *name) {
    const double unit = args->type == COPPICE_F32 ? 0 : args->type == COPPICE_F16 ? 0x1p-10 : 0x1p-7;
    for (int64_t row = 0; row < args->weight.rows; row++)
        for (int64_t pixel = 0; pixel < args->pixels && !isnan(to->off[row]); pixel++) {
            const int64_t place = row * args->y_stride + pixel;
            double a = (double)coppice_load(args->type, to->y, place);
            double b = (double)coppice_load(args->type, to->expected, place);
            if ((isnan(a) && isnan(b)) || a == b)
                continue;
            if (args->type == COPPICE_F16) /* one of them may have been rounded to infinity */
                a = fmin(fmax(a, -65536), 65536), b = fmin(fmax(b, -65536), 65536);
            if (!(fabs(a - b) <= to->off[row] + unit * (fabs(a) + to->off[row]) + 0x1p-24)) {
                fprintf(stderr, "%s: row %lld, pixel %lld: %g, the reference has %g, %g off at most\n", name,
                        (long long)row, (long long)pixel, a, b, to->off[row]);
                abort();
            }
        }
}

static void run_all(coppice_matmul_args *args, result *to, int with_code) {
    coppice_variant variant;
    for (int32_t index = 0; coppice_variant_info(index, &variant) == COPPICE_OK; index++) {
        if (strcmp(variant.primitive, "matmul") != 0 || !variant.available)
            continue;
        memset(to->y, 0x55, to->size);
        for (args->work.share = 0; args->work.share < args->work.shares; args->work.share++)
            if (coppice_variant_run(index, args) != COPPICE_OK)
                abort();
        if (!with_code && strcmp(variant.name, "generic") == 0)
            memcpy(to->expected, to->y, to->size);
        compare(args, to, with_code ? "code" : variant.name);
    }
    __asan_unpoison_memory_region(to->memory, to->size + 2 * guard);
    for (size_t i = 0; i < guard; i++)
        if (to->memory[i] != 0x33 || to->y[to->size + i] != 0x33)
            abort();
}

static void run_code(coppice_matmul_args *args, result *to) {
    coppice_weight *w = &args->weight;
    const int64_t size = coppice_code_bytes(w);
    if (size < 0)
        return;
    void *written = aligned_alloc(64, (size_t)size);
    void *code = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!written || code == MAP_FAILED || coppice_code_write(w, written, size) != COPPICE_OK)
        abort();
    memcpy(code, written, (size_t)size);
    if (mprotect(code, (size_t)size, PROT_READ | PROT_EXEC) != 0)
        abort();
    w->code = code;
    run_all(args, to, 1);
    w->code = NULL;
    munmap(code, (size_t)size);
    free(written);
}

static void multiply(source *s, const coppice_weight *w) {
    coppice_matmul_args args = {.weight = *w,
                                .type = (int32_t)below(s, 3),
                                .activation = below(s, 3) ? 0 : (int32_t)below(s, 5),
                                .pixels = below(s, 2) ? below(s, 6) : below(s, 130),
                                .lower = below(s, 2) ? 0 : -INFINITY,
                                .upper = below(s, 3) ? INFINITY : 6,
                                .work = {.shares = 1 + (int32_t)below(s, 3)}};
    args.x_stride = args.pixels + below(s, 4) / 3 * below(s, 9);
    args.y_stride = args.residual_stride = args.pixels + below(s, 4) / 3 * below(s, 9);
    args.work.scratch_bytes = coppice_matmul_scratch(&args);
    const int64_t x_count = w->cols && args.pixels ? (w->cols - 1) * args.x_stride + args.pixels : 0;
    const int64_t y_count = w->rows && args.pixels ? (w->rows - 1) * args.y_stride + args.pixels : 0;
    if (x_count > most_elements || y_count > most_elements || args.work.scratch_bytes > 1 << 25)
        return;
    const int64_t size = (int64_t)coppice_type_size(args.type);
    void *x = array(x_count, size), *residual = array(y_count, size);
    float *bias = array(w->rows, sizeof *bias);
    result to = {.size = (size_t)(y_count * size)};
    to.memory = malloc(to.size + 2 * guard), to.expected = malloc(to.size), to.y = to.memory + guard;
    args.work.scratch = malloc((size_t)args.work.scratch_bytes);
    fill(s, args.type, x, x_count);
    fill(s, args.type, residual, y_count);
    fill(s, COPPICE_F32, bias, w->rows);
    memset(to.memory, 0x33, to.size + 2 * guard);
    args.x = x, args.y = to.y;
    args.bias = below(s, 2) ? bias : NULL, args.residual = below(s, 4) ? NULL : residual;
    const double largest = largest_of(args.type, residual, y_count, largest_of(args.type, x, x_count, 0));
    to.off = malloc((size_t)w->rows * sizeof *to.off);
    for (int64_t row = 0; row < w->rows; row++)
        to.off[row] = apart(&args, row, largest);
    __asan_poison_memory_region(to.memory, guard);
    __asan_poison_memory_region(to.y + to.size, guard);
    run_all(&args, &to, 0);
    if (w->layout == COPPICE_SPARSE)
        run_code(&args, &to);
    free(x), free(residual), free(bias), free(to.memory), free(to.expected), free(to.off), free(args.work.scratch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    source s = {data, data + size, 2166136261u};
    coppice_weight weight = random_sizes(&s);
    const blocks held = fill_weight(&s, &weight);
    if (coppice_weight_validate(&weight) == COPPICE_OK)
        multiply(&s, &weight);
    free(held.starts), free(held.columns), free(held.values), free(held.scales);
    return 0;
}
