/* The check of matmul: what it computes. */
#define _DEFAULT_SOURCE /* mmap of no file, and POSIX */
#include "check_matmul.h"

#include <sys/mman.h>

/* --- one problem, all variants -------------------------------------------------------------------------------------
 */

/* How far the arithmetic that is allowed may be off, as abi.h has it, for a sum of `count` products of such magnitudes
 * and of values of such magnitudes. */
static double arithmetic_error(const trial *t, int64_t pixel, double count, double products, double values) {
    const coppice_matmul_args *args = &t->args;
    if (args->arithmetic == COPPICE_F16 && args->type == COPPICE_F16 && args->weight.type == COPPICE_F16)
        return fmin(count, 128) * ldexp(1, -10) * products + count * ldexp(1, -24);
    if (args->arithmetic == COPPICE_BF16)
        return (ldexp(1, -7) + count * ldexp(1, -24)) * products + count * ldexp(1, -125);
    if (args->arithmetic == COPPICE_I8 && args->weight.type == COPPICE_I8)
        return isinf(t->units[pixel]) ? 0 : t->units[pixel] / 2 * values + (count + 3) * ldexp(1, -24) * products;
    return 0;
}

static double *make_units(const coppice_matmul_args *args) {
    double *units = allocate((size_t)args->pixels * sizeof *units);
    for (int64_t pixel = 0; pixel < args->pixels; pixel++) {
        double greatest = 0;
        for (int64_t column = 0; column < args->weight.cols; column++)
            greatest =
                fmax(greatest, fabs(column_at(args->type, args->x, args->x_stride, args->window, column, pixel)));
        units[pixel] = fmax(greatest / 127, ldexp(1, -126));
    }
    return units;
}

/* The value in fp64. Of n products, the scale, the bias and the residual, each of the n + 3 roundings errs by at most
 * half an epsilon of the sum of magnitudes; the bound is twice that. */
double reference(const trial *t, int64_t row, int64_t pixel, double *bound) {
    const coppice_matmul_args *args = &t->args;
    const coppice_weight *weight = &t->lists;
    const int64_t slabs = weight->cols > weight->slab ? ceiling(weight->cols, weight->slab) : 1;
    const int64_t bands = ceiling(weight->rows, weight->height), band = row / weight->height;
    const double bias = args->bias ? (double)args->bias[row] : 0;
    const double residual = args->residual ? get(args->type, args->residual, row * args->residual_stride + pixel) : 0;
    const double scale = weight->scales ? (double)weight->scales[row] : 1;
    double sum = bias + residual, magnitude = fabs(bias) + fabs(residual), products = 0, values = 0, terms = 3;
    for (int64_t slab = 0; slab < slabs; slab++) {
        const uint32_t *starts = weight->starts + slab * bands + band;
        for (uint32_t entry = starts[0]; entry < starts[1]; entry++, terms++) {
            const double value = get(weight->type, weight->values, entry * weight->height + row % weight->height);
            const double product = scale * value *
                                   column_at(args->type, args->x, args->x_stride, args->window,
                                             slab * weight->slab + weight->columns[entry], pixel);
            sum += product;
            products += fabs(product), values += fabs(value);
        }
    }
    const double off = terms * (double)FLT_EPSILON * (magnitude + products) +
                       scale * arithmetic_error(t, pixel, terms - 3, products / scale, values);
    return finished(args->activation, args->lower, args->upper, args->type, sum, off, bound);
}

trial make_trial(problem p) {
    const coppice_window *window = p.window;
    if (window)
        p.cols = window->channels * window->kernel_y * window->kernel_x,
        p.pixels = window->out_height * window->out_width;
    const int64_t x_gap = random_below(3) * random_below(9), y_stride = p.pixels + random_below(2) * random_below(9);
    const int64_t x_stride = random_below(3) ? p.pixels + x_gap : ceiling(p.pixels, 16) * 16;
    const int64_t clamp = random_below(3), with_bias = random_below(2), residual_kind = random_below(3);
    enum { none, apart, in_place };
    const int64_t residual_stride = residual_kind == in_place ? y_stride : p.pixels + random_below(5);
    const int64_t x_count = window ? window_extent(window) : extent(p.cols, p.pixels, x_stride);
    trial t = {.x_offset = random_below(3) / 2, .y = make_output(p.type, p.rows, p.pixels, y_stride)};
    t.x = random_elements(p.type, x_count, t.x_offset);
    t.residual = random_elements(p.type, extent(p.rows, p.pixels, residual_stride), 1);
    t.bias = (float *)(void *)random_elements(COPPICE_F32, p.rows, 0);
    for (int64_t column = 0; column + 1 < p.cols && p.pixels && !window; column++)
        for (int64_t pixel = p.pixels; pixel < x_stride; pixel++)
            put(p.type, t.x, column * x_stride + pixel, NAN); /* between the rows: it would show in a result */
    if (p.special)
        make_special(p.type, t.x, x_count);

    t.lists = (coppice_weight){.layout = p.height ? COPPICE_SPARSE : COPPICE_DENSE,
                               .type = p.weight_type,
                               .rows = p.rows,
                               .cols = p.cols,
                               .slab = p.slab,
                               .height = p.height ? p.height : (int64_t)4 << random_below(3)};
    if (p.packed) {
        t.lists.layout = p.packed, t.lists.kept = p.kept, t.lists.group = p.group;
        t.packed = random_packed(t.lists, p.density, &t.lists);
    } else {
        t.lists = random_weight(t.lists, p.density);
    }
    t.args = (coppice_matmul_args){.weight = p.packed ? t.packed : without_lists(t.lists),
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
                                   .y = start_of(&t.y, t.y.after)};
    give_scratch(&t.args.work, coppice_matmul_scratch(&t.args));
    t.units = p.weight_type == COPPICE_I8 ? make_units(&t.args) : NULL;
    for (int64_t row = 0; row < p.rows; row++)
        for (int64_t pixel = 0; pixel < p.pixels; pixel++) {
            const int64_t i = row * p.pixels + pixel;
            t.y.expected[i] = reference(&t, row, pixel, &t.y.bound[i]);
        }
    if (residual_kind == in_place) {
        memcpy(start_of(&t.y, t.y.before), t.residual, (size_t)t.y.count * size_of(p.type));
        t.args.residual = t.args.y;
    }
    return t;
}

void free_trial(trial *t) {
    free_weight(&t->lists);
    free_packed(&t->packed);
    free(t->args.work.scratch);
    free(t->x - (size_t)t->x_offset * size_of(t->args.type));
    free(t->residual - size_of(t->args.type));
    free(t->bias);
    free(t->units);
    free_output(&t->y);
}

/* The same product by straight-line code, where there is such. */
static void check_code(trial *t, const char *what) {
    coppice_weight *weight = &t->args.weight;
    const int64_t bytes = coppice_code_bytes(weight);
    if (bytes == COPPICE_ISA_MISSING || weight->layout != COPPICE_SPARSE || weight->height != 1)
        return;
    expect(bytes > 0, "no size of code", what);
    void *code = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED)
        abort();
    expect_status(coppice_code_write(weight, code, bytes - 1), COPPICE_SCRATCH, "code in too little room");
    expect_status(coppice_code_write(weight, code, bytes), COPPICE_OK, "writing code");
    if (mprotect(code, (size_t)bytes, PROT_READ | PROT_EXEC) != 0)
        abort();
    weight->code = code;
    check_variants("matmul", &t->args, &t->y, what);
    const int64_t other = weight->slab > 1 ? -1 : 1;
    weight->slab += other;
    expect_status(coppice_matmul(&t->args), COPPICE_CODE, "code of another weight");
    weight->slab -= other;
    weight->code = NULL;
    munmap(code, (size_t)bytes);
}

void check_problem(problem p) {
    trial t = make_trial(p);
    const coppice_matmul_args *args = &t.args;
    char what[240];
    snprintf(what, sizeof what,
             "%lld x %lld x %lld, slab %lld, density %.2f, layout %d, height %lld, types %d %d, activation %d, "
             "arithmetic %d, %swindow",
             (long long)p.rows, (long long)args->weight.cols, (long long)args->pixels, (long long)p.slab, p.density,
             (int)args->weight.layout, (long long)args->weight.height, (int)p.weight_type, (int)p.type,
             (int)p.activation, (int)p.arithmetic, p.window ? "" : "no ");
    check_variants("matmul", &t.args, &t.y, what);
    check_code(&t, what);
    free_trial(&t);
}

/* --- the problems --------------------------------------------------------------------------------------------------
 */

int64_t random_height(void) {
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
                    if (taken())
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
    for (int round = 0; round < rounds(1200); round++)
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

/* Every kernel, stride, dilation and pad, rows of x apart, and outputs that reach beyond x on all sides. */
static void check_windows(void) {
    for (int round = 0; round < rounds(800); round++) {
        const coppice_window w = random_near_or_far_window();
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
        coppice_matmul_args args = {.weight = {.layout = COPPICE_SPARSE,
                                               .type = type,
                                               .rows = 1,
                                               .cols = 1,
                                               .slab = 1,
                                               .height = 1,
                                               .entries = 1,
                                               .starts = starts,
                                               .columns = &column,
                                               .values = &one},
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
        const char *name;
        for (int32_t index = -1; (name = next_variant("matmul", &index));) {
            int same = coppice_variant_run(index, &args) == COPPICE_OK, nearest = 1;
            for (int32_t i = 0; i < halves; i++)
                same &= isnan(half_value(type, x[i])) ? isnan(half_value(type, y[i]))
                                                      : half_value(type, x[i]) == half_value(type, y[i]);
            expect(same, "a half changed on its way", name);
            for (int round = 0; round < rounds(3000); round++) {
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
            expect(nearest, "not rounded to the nearest half", name);
        }
        free(args.work.scratch);
    }
    free(x), free(y), free(bias);
}

static problem random_packed_problem(void) {
    static const int32_t groups[] = {2, 4, 8, 16};
    problem p = {.rows = random_below(150),
                 .cols = random_below(3) ? random_below(300) : random_below(1500),
                 .density = (double)random_below(11) / 10,
                 .packed = COPPICE_BITMASK + (int32_t)random_below(3),
                 .weight_type = (int32_t)random_below(4),
                 .group = groups[random_below(4)],
                 .type = (int32_t)random_below(3)};
    p.kept = 1 + (int32_t)random_below(p.group - 1);
    if (p.packed == COPPICE_SELL)
        p.weight_type = COPPICE_I8;
    if (p.packed == COPPICE_N_OF_M)
        p.cols -= p.cols % p.group;
    return p;
}

/* Few pixels, many, and windows. */
static void check_packed(void) {
    for (int round = 0; round < 2400; round++) {
        problem p = random_packed_problem();
        p.pixels = round % 3 ? random_below(6) : round % 4 ? random_below(21) : random_below(200);
        p.activation = round % 2 ? (int32_t)random_below(5) : COPPICE_CLAMP_ONLY;
        p.arithmetic = (int32_t)random_below(2) * COPPICE_I8;
        p.special = p.arithmetic == COPPICE_F32 && round % 4 == 0;
        check_problem(p);
    }
    for (int round = 0; round < 200; round++) {
        const coppice_window w = random_window();
        problem p = random_packed_problem();
        p.window = &w;
        if (p.packed != COPPICE_N_OF_M || w.channels * w.kernel_y * w.kernel_x % p.group == 0)
            check_problem(p);
    }
}

/* Bands and slabs beyond the first thousand rows and columns are alike; what is left over at the end is kept. */
static int64_t capped(int64_t size) {
    return size < 1088 ? size : 1024 + size % 64;
}

/* Rows of shapes.csv: model,layer,rows,cols,pixels and more. All panels beyond the third are alike, too. */
static void check_real(const char *path) {
    FILE *file = fopen(path, "r");
    char line[256];
    int shapes = 0;
    while (file && fgets(line, sizeof line, file)) {
        long long rows, cols, pixels;
        if (sscanf(line, "%*[^,],%*[^,],%lld,%lld,%lld", &rows, &cols, &pixels) != 3)
            continue; /* the header */
        shapes++;
        if (taken())
            check_problem((problem){.rows = capped(rows),
                                    .cols = capped(cols),
                                    .pixels = pixels < 210 ? pixels : 210,
                                    .slab = 192,
                                    .density = 0.1,
                                    .height = random_height()});
    }
    if (file)
        fclose(file);
    expect(shapes > 0, "no shapes in", path);
}

void check_matmul(const char *shapes) {
    check_matmul_arguments();
    check_types();
    check_edges();
    check_random();
    check_windows();
    check_packed();
    check_arithmetic();
    if (shapes)
        check_real(shapes);
}
