/* A libFuzzer target for what takes weights from strangers. What coppice_weight_validate lets through of the weights of
 * fuzz_arrays.c is multiplied by in every variant, and as straight-line code, and the results are compared. `make
 * fuzz-weights` builds and runs it. */
#define _DEFAULT_SOURCE /* mmap of no file */
#include "fuzz_arrays.h"
#include "layouts.h"

#include <float.h>
#include <math.h>
#include <sanitizer/asan_interface.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { guard = 64 };

/* --- what is done with it -----------------------------------------------------------------------------------------
 */

/* What a row of a weight has: entries, and the magnitudes of those that are finite; `tiny` where a product with one of
 * them may underflow. */
typedef struct row_sums {
    double entries, magnitude;
    int tiny;
} row_sums;

static void add_entry(row_sums *sums, double value) {
    sums->entries++;
    sums->tiny |= value != 0 && fabs(value) < 0x1p-60;
    sums->magnitude += isfinite(value) ? fabs(value) : 0;
}

static row_sums sums_of(const coppice_weight *w, int64_t row) {
    row_sums sums = {0};
    int64_t cursor = 0;
    for (int64_t first = 0; coppice_is_packed(w->layout) && first < w->cols; first += unpacked_slab) {
        uint16_t columns[unpacked_slab];
        float values[unpacked_slab];
        const int count = coppice_unpack(w, row, first, &cursor, columns, values);
        for (int entry = 0; entry < count; entry++)
            add_entry(&sums, (double)values[entry]);
    }
    for (int64_t slab = 0; !coppice_is_packed(w->layout) && slab < coppice_slabs(w); slab++) {
        const size_t first = coppice_first_entry(w, slab, row / w->height);
        const size_t end = first + coppice_entries(w, slab, row / w->height);
        for (size_t entry = first; entry < end; entry++)
            add_entry(&sums, (double)coppice_load(w->type, w->values, (int64_t)entry * w->height + row % w->height));
    }
    return sums;
}

/* What the arithmetic that is allowed gives up of a sum, by abi.h and no finite x above `largest`; NaN: anything. */
static double given_up(const coppice_matmul_args *args, const row_sums *sums, double largest) {
    const double magnitude = sums->magnitude * largest;
    const int halves = args->type == COPPICE_F16 && args->weight.type == COPPICE_F16;
    if (args->arithmetic != COPPICE_F32 && (sums->magnitude > 1e30 || largest < 0x1p-60))
        return NAN;
    if (args->arithmetic == COPPICE_F16 && halves)
        return magnitude > 65000 ? NAN : fmin(sums->entries, 128) * 0x1p-10 * magnitude + sums->entries * 0x1p-24;
    if (args->arithmetic == COPPICE_I8 && args->weight.type == COPPICE_I8)
        return magnitude / 254;
    return args->arithmetic == COPPICE_BF16 ? 0x1p-7 * magnitude : 0;
}

/* How far two variants may be apart in a row of y, before rounding to its type, where no finite x is above `largest`;
 * NaN: anything goes, because a sum may overflow, or a product or a scaled value underflow, in one of them alone. */
static double apart(const coppice_matmul_args *args, int64_t row, double largest) {
    const coppice_weight *w = &args->weight;
    const double scale = w->scales ? fabs((double)w->scales[row]) : 1;
    const double bias = args->bias && isfinite(args->bias[row]) ? fabs((double)args->bias[row]) : 0;
    if (!isfinite(scale) || scale > 0x1p60 || (scale != 0 && scale < 0x1p-60))
        return NAN;
    const row_sums sums = sums_of(w, row);
    const double magnitude = sums.magnitude * largest, terms = 3 + sums.entries;
    const double all = magnitude * scale + bias + largest; /* residual is no larger than x */
    if (sums.tiny || magnitude > 1e30 || all > 1e30)
        return NAN;
    const double rounding = 4 * terms * ((double)FLT_EPSILON * all + (double)FLT_MIN * fmax(1, scale));
    return rounding + 2e-6 * (1 + all) +
           2 * scale * given_up(args, &sums, largest); /* activations: 1.5 times at most */
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

/* Elements of x from its first to its last. */
static int64_t extent_of_x(const coppice_matmul_args *args) {
    const coppice_window *w = args->window;
    if (!w)
        return args->weight.cols && args->pixels ? (args->weight.cols - 1) * args->x_stride + args->pixels : 0;
    if (!w->channels || !w->height || !w->width)
        return 0;
    return (w->channels - 1) * w->channel_stride + (w->height - 1) * w->row_stride + w->width;
}

/* In bytes a pixel with infinity is NaN, though the reference may know better. Any pixel of windows may have it. */
static int is_lost(const coppice_matmul_args *args, int64_t pixel) {
    const int64_t stride = args->window ? 1 : args->x_stride, end = extent_of_x(args);
    if (args->arithmetic != COPPICE_I8 || args->weight.type != COPPICE_I8)
        return 0;
    for (int64_t place = args->window ? 0 : pixel; place < end; place += stride)
        if (!isfinite(coppice_load(args->type, args->x, place)))
            return 1;
    return 0;
}

static void compare(const coppice_matmul_args *args, const result *to, const char *name) {
    const double unit = args->type == COPPICE_F32 ? 0 : args->type == COPPICE_F16 ? 0x1p-10 : 0x1p-7;
    for (int64_t row = 0; row < args->weight.rows; row++)
        for (int64_t pixel = 0; pixel < args->pixels && !isnan(to->off[row]); pixel++) {
            const int64_t place = row * args->y_stride + pixel;
            double a = (double)coppice_load(args->type, to->y, place);
            double b = (double)coppice_load(args->type, to->expected, place);
            if ((isnan(a) && isnan(b)) || a == b || (isnan(a) && is_lost(args, pixel)))
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

/* Windows with a column for each of so many; NULL where their number has no kernel, or by chance. */
static const coppice_window *random_window(source *s, int64_t cols, coppice_window *w) {
    *w = (coppice_window){.height = below(s, 10),
                          .width = below(s, 30),
                          .kernel_y = 1 + below(s, 3),
                          .kernel_x = 1 + below(s, 3),
                          .stride_y = 1 + below(s, 3),
                          .stride_x = 1 + below(s, 3),
                          .dilation_y = 1 + below(s, 2),
                          .dilation_x = 1 + below(s, 2),
                          .pad_y = below(s, 4),
                          .pad_x = below(s, 4),
                          .out_height = below(s, 6),
                          .out_width = below(s, 40)};
    w->channels = cols / (w->kernel_y * w->kernel_x);
    w->row_stride = w->width + below(s, 4) / 3 * below(s, 5);
    w->channel_stride = w->height * w->row_stride + below(s, 4) / 3 * below(s, 5);
    return w->channels * w->kernel_y * w->kernel_x == cols && below(s, 2) ? w : NULL;
}

static void multiply(source *s, const coppice_weight *w) {
    coppice_window windows;
    const coppice_window *window = below(s, 2) ? random_window(s, w->cols, &windows) : NULL;
    coppice_matmul_args args = {.weight = *w,
                                .type = (int32_t)below(s, 3),
                                .activation = below(s, 3) ? 0 : (int32_t)below(s, 5),
                                .arithmetic = below(s, 2) ? COPPICE_F32 : (int32_t)below(s, 4),
                                .window = window,
                                .pixels = below(s, 2) ? below(s, 6) : below(s, 130),
                                .lower = below(s, 2) ? 0 : -INFINITY,
                                .upper = below(s, 3) ? INFINITY : 6,
                                .work = {.shares = 1 + (int32_t)below(s, 3)}};
    if (window)
        args.pixels = window->out_height * window->out_width;
    args.x_stride = args.pixels + below(s, 4) / 3 * below(s, 9);
    args.y_stride = args.residual_stride = args.pixels + below(s, 4) / 3 * below(s, 9);
    args.work.scratch_bytes = coppice_matmul_scratch(&args);
    const int64_t x_count = extent_of_x(&args);
    const int64_t y_count = w->rows && args.pixels ? (w->rows - 1) * args.y_stride + args.pixels : 0;
    if (w->rows > most_elements || x_count > most_elements || y_count > most_elements ||
        args.work.scratch_bytes > 1 << 25)
        return;
    const int64_t size = (int64_t)coppice_type_size(args.type);
    void *x = array(x_count, size), *residual = array(y_count, size);
    float *bias = array(w->rows, sizeof *bias);
    result to = {.size = (size_t)(y_count * size)};
    to.memory = malloc(to.size + 2 * guard), to.expected = malloc(to.size), to.y = to.memory + guard;
    args.work.scratch = malloc((size_t)args.work.scratch_bytes);
    fill_elements(s, args.type, x, x_count);
    fill_elements(s, args.type, residual, y_count);
    fill_elements(s, COPPICE_F32, bias, w->rows);
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
    blocks held;
    const coppice_weight weight = random_weight(&s, &held);
    if (coppice_weight_validate(&weight) == COPPICE_OK)
        multiply(&s, &weight);
    free_blocks(&held);
    return 0;
}
