/* The check of weight_gradient. */
#include "check.h"

typedef struct problem {
    int64_t rows, cols, pixels, slab; /* cols and pixels are of the window where there is one */
    double density;
    int64_t height; /* of the bands; 0: dense, in bands of 1, 4, 8 or 16 */
    int32_t type;
    int special; /* some infinities and NaN in dy and x */
    const coppice_window *window;
} problem;

/* The gradient, and behind it that of the bias, are the one row of the output. */
typedef struct trial {
    coppice_weight_gradient_args args;
    coppice_weight lists;
    char *dy, *x;
    int64_t offset; /* of dy and x in their memory */
    output y;
} trial;

/* Of n products and what was there, each of the n + 1 roundings errs by at most half an epsilon of the sum of
 * magnitudes; the bound is twice that. `column` may be -1: for the bias. */
static void add_reference(const trial *t, int64_t at, int64_t row, int64_t column) {
    const coppice_weight_gradient_args *args = &t->args;
    double sum = args->accumulate ? get(COPPICE_F32, start_of(&t->y, t->y.before), at) : 0, magnitude = fabs(sum);
    for (int64_t pixel = 0; pixel < args->pixels; pixel++) {
        const double dy = get(args->type, args->dy, row * args->dy_stride + pixel);
        const double x = column < 0 ? 1 : column_at(args->type, args->x, args->x_stride, args->window, column, pixel);
        sum += dy * x;
        magnitude += fabs(dy * x);
    }
    t->y.expected[at] = sum;
    t->y.bound[at] = (double)(args->pixels + 1) * (double)FLT_EPSILON * magnitude + (double)FLT_MIN;
}

/* Of every value, those of rows past the matrix among them, and of the bias. */
static void reference(const trial *t) {
    const coppice_weight *weight = &t->lists;
    const int64_t slabs = weight->cols > weight->slab ? ceiling(weight->cols, weight->slab) : 1;
    const int64_t bands = ceiling(weight->rows, weight->height);
    for (int64_t list = 0; list < slabs * bands; list++)
        for (int64_t entry = weight->starts[list]; entry < weight->starts[list + 1]; entry++)
            for (int64_t r = 0; r < weight->height; r++) {
                const int64_t row = list % bands * weight->height + r, at = entry * weight->height + r;
                if (row < weight->rows) {
                    add_reference(t, at, row, list / bands * weight->slab + weight->columns[entry]);
                    continue;
                }
                const double kept = get(COPPICE_F32, start_of(&t->y, t->y.before), at);
                t->y.expected[at] = t->args.accumulate ? kept : 0;
                t->y.bound[at] = 0;
            }
    for (int64_t row = 0; row < weight->rows && t->args.bias; row++)
        add_reference(t, weight->entries * weight->height + row, row, -1);
}

/* What stands between the rows would show in a result. */
static void separate(int32_t type, char *data, int64_t rows, int64_t pixels, int64_t stride) {
    for (int64_t row = 0; row + 1 < rows && pixels; row++)
        for (int64_t pixel = pixels; pixel < stride; pixel++)
            put(type, data, row * stride + pixel, NAN);
}

static trial make_trial(problem p) {
    const coppice_window *window = p.window;
    if (window)
        p.cols = window->channels * window->kernel_y * window->kernel_x,
        p.pixels = window->out_height * window->out_width;
    const int64_t dy_stride = p.pixels + random_below(3) * random_below(9);
    const int64_t x_stride = random_below(3) ? p.pixels + random_below(9) : ceiling(p.pixels, 16) * 16;
    const int64_t x_count = window ? window_extent(window) : extent(p.cols, p.pixels, x_stride);
    const int64_t dy_count = extent(p.rows, p.pixels, dy_stride);
    trial t = {.offset = random_below(3) / 2};
    t.dy = random_elements(p.type, dy_count, t.offset);
    t.x = random_elements(p.type, x_count, t.offset);
    separate(p.type, t.dy, p.rows, p.pixels, dy_stride);
    if (!window)
        separate(p.type, t.x, p.cols, p.pixels, x_stride);
    if (p.special && random_below(2))
        make_special(p.type, t.x, x_count);
    else if (p.special)
        make_special(p.type, t.dy, dy_count);
    t.lists = (coppice_weight){.layout = p.height ? COPPICE_SPARSE : COPPICE_DENSE,
                               .rows = p.rows,
                               .cols = p.cols,
                               .slab = p.slab,
                               .height = p.height ? p.height : (int64_t)1 << (2 + random_below(4)) % 5};
    t.lists = random_weight(t.lists, p.density);
    const int64_t values = t.lists.entries * t.lists.height;
    t.y = make_output(COPPICE_F32, 1, values + p.rows, values + p.rows);
    t.args = (coppice_weight_gradient_args){.weight = without_lists(t.lists),
                                            .type = p.type,
                                            .accumulate = (int32_t)random_below(2),
                                            .pixels = p.pixels,
                                            .dy = t.dy,
                                            .dy_stride = dy_stride,
                                            .x = t.x,
                                            .x_stride = x_stride,
                                            .window = window,
                                            .gradient = start_of(&t.y, t.y.after)};
    t.args.weight.values = NULL, t.args.weight.scales = NULL, t.args.weight.type = -1;
    if (random_below(3))
        t.args.bias = t.args.gradient + values;
    else
        t.y.pixels = values;
    for (int64_t i = 0; i < t.y.pixels && t.args.accumulate; i++)
        put(COPPICE_F32, start_of(&t.y, t.y.before), i, random_value());
    give_scratch(&t.args.work, coppice_weight_gradient_scratch(&t.args));
    reference(&t);
    return t;
}

static void free_trial(trial *t) {
    const size_t before = (size_t)t->offset * size_of(t->args.type);
    free_weight(&t->lists);
    free(t->args.work.scratch);
    free(t->dy - before);
    free(t->x - before);
    free_output(&t->y);
}

static void check_problem(problem p) {
    trial t = make_trial(p);
    const coppice_weight_gradient_args *args = &t.args;
    char what[240];
    snprintf(what, sizeof what,
             "%lld x %lld x %lld, slab %lld, density %.2f, layout %d, height %lld, type %d, accumulate %d, %sbias, "
             "%swindow",
             (long long)p.rows, (long long)args->weight.cols, (long long)args->pixels, (long long)p.slab, p.density,
             (int)args->weight.layout, (long long)args->weight.height, (int)p.type, (int)args->accumulate,
             args->bias ? "" : "no ", p.window ? "" : "no ");
    check_variants("weight_gradient", &t.args, &t.y, what);
    free_trial(&t);
}

static int64_t random_height(void) {
    static const int64_t heights[] = {0, 1, 4, 8, 16};
    return heights[random_below(5)];
}

static void check_edges(void) {
    static const int64_t rows[] = {0, 1, 2, 5, 17}, cols[] = {0, 1, 3, 70}, slabs[] = {1, 32, 65536};
    static const int64_t pixels[] = {0,  1,  2,  3,  4,  5,   7,   8,   9,   15,  16,  17, 32,
                                     63, 64, 65, 95, 97, 191, 192, 193, 209, 384, 385, 400};
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
                                                .type = (int32_t)random_below(3)});
}

static void check_random(void) {
    for (int round = 0; round < rounds(900); round++)
        check_problem((problem){.rows = random_below(40),
                                .cols = random_below(round % 16 ? 100 : 700),
                                .pixels = random_below(round % 8 ? 260 : 900),
                                .slab = 1 + random_below(round % 2 ? 700 : 60),
                                .density = (double)random_below(11) / 10,
                                .height = random_height(),
                                .type = (int32_t)random_below(3),
                                .special = round % 4 == 0});
}

static void check_windows(void) {
    for (int round = 0; round < rounds(800); round++) {
        const coppice_window w = random_near_or_far_window();
        check_problem((problem){.rows = random_below(24),
                                .slab = 1 + random_below(60),
                                .density = (double)random_below(11) / 10,
                                .height = random_height(),
                                .type = (int32_t)random_below(3),
                                .special = round % 8 == 0,
                                .window = &w});
    }
}

/* A plain matrix may be wider than a slab that has its columns in 16 bits. */
static void check_wide(void) {
    enum { rows = 2, cols = 70000, pixels = 3 };
    float *dy = (float *)(void *)random_elements(COPPICE_F32, rows * pixels, 0);
    float *x = (float *)(void *)random_elements(COPPICE_F32, cols * pixels, 0);
    float *gradient = allocate(rows * cols * sizeof *gradient);
    coppice_weight_gradient_args args = {
        .weight =
            {.layout = COPPICE_DENSE, .rows = rows, .cols = cols, .slab = cols, .height = 1, .entries = rows * cols},
        .pixels = pixels,
        .dy = dy,
        .dy_stride = pixels,
        .x = x,
        .x_stride = pixels,
        .gradient = gradient};
    give_scratch(&args.work, coppice_weight_gradient_scratch(&args));
    const char *name;
    for (int32_t index = -1; (name = next_variant("weight_gradient", &index));) {
        int right = coppice_variant_run(index, &args) == COPPICE_OK;
        for (int64_t i = 0; i < rows * cols; i++) {
            double sum = 0, magnitude = 0;
            for (int pixel = 0; pixel < pixels; pixel++) {
                const double product = (double)dy[i / cols * pixels + pixel] * (double)x[i % cols * pixels + pixel];
                sum += product, magnitude += fabs(product);
            }
            right &= fabs((double)gradient[i] - sum) <= (pixels + 1) * (double)FLT_EPSILON * magnitude;
        }
        expect(right, "wrong result", name);
    }
    free(args.work.scratch), free(gradient), free(x), free(dy);
}

#define REFUSED(expected, change)                                                                                      \
    do {                                                                                                               \
        coppice_weight_gradient_args args = t.args;                                                                    \
        change;                                                                                                        \
        expect_status(coppice_weight_gradient(&args), expected, #change);                                              \
    } while (0)

static void check_arguments(void) {
    trial t = make_trial((problem){.rows = 4, .cols = 6, .pixels = 20, .slab = 3, .density = 0.5, .height = 1});
    float bias[4];
    REFUSED(COPPICE_OK, args.accumulate = 1);
    REFUSED(COPPICE_OK, args.bias = bias);
    REFUSED(COPPICE_LAYOUT, args.weight.layout = 7);
    REFUSED(COPPICE_LAYOUT, args.weight.height = 2);
    REFUSED(COPPICE_STARTS, (args.weight.layout = COPPICE_DENSE, args.weight.entries = 23));
    REFUSED(COPPICE_TYPE, args.type = COPPICE_I8);
    REFUSED(COPPICE_TYPE, args.type = -1);
    REFUSED(COPPICE_SHARE, args.work.share = 1);
    REFUSED(COPPICE_SHARE, args.work.shares = 0);
    REFUSED(COPPICE_SIZE, args.weight.rows = -1);
    REFUSED(COPPICE_SIZE, args.weight.cols = (int64_t)1 << 31);
    REFUSED(COPPICE_SIZE, args.weight.slab = 65537);
    REFUSED(COPPICE_SIZE, args.weight.entries = (int64_t)1 << 32);
    REFUSED(COPPICE_SIZE, (args.weight.layout = COPPICE_DENSE, args.weight.slab = (int64_t)1 << 31));
    REFUSED(COPPICE_SIZE, args.pixels = -1);
    REFUSED(COPPICE_SIZE, args.pixels = INT64_MAX);
    REFUSED(COPPICE_NULL, args.weight.starts = NULL);
    REFUSED(COPPICE_NULL, args.weight.columns = NULL);
    REFUSED(COPPICE_NULL, args.gradient = NULL);
    REFUSED(COPPICE_NULL, args.dy = NULL);
    REFUSED(COPPICE_NULL, args.x = NULL);
    REFUSED(COPPICE_NULL, args.work.scratch = NULL);
    REFUSED(COPPICE_ALIGNMENT, args.dy = (const char *)args.dy + 2);
    REFUSED(COPPICE_ALIGNMENT, args.x = (const char *)args.x + 1);
    REFUSED(COPPICE_ALIGNMENT, args.gradient = (float *)(void *)((char *)args.gradient + 1));
    REFUSED(COPPICE_ALIGNMENT, args.bias = (float *)(void *)((char *)bias + 2));
    REFUSED(COPPICE_STRIDE, args.dy_stride = 19);
    REFUSED(COPPICE_STRIDE, args.x_stride = INT64_MAX);
    REFUSED(COPPICE_SCRATCH, args.work.scratch_bytes--);
    expect_status(coppice_weight_gradient(NULL), COPPICE_NULL, "arguments");
    expect_status(coppice_weight_gradient_scratch(NULL), COPPICE_NULL, "arguments of scratch");
    free_trial(&t);
}

static void check_window_arguments(void) {
    const coppice_window window = {3, 5, 6, 7, 40, 2, 2, 1, 1, 1, 1, 0, 0, 4, 5};
    coppice_window changed = window;
    trial t = make_trial((problem){.rows = 4, .slab = 8, .density = 0.5, .height = 4, .window = &window});
    REFUSED(COPPICE_WINDOW, (changed.kernel_x = 3, args.window = &changed));
    changed = window;
    REFUSED(COPPICE_WINDOW, (changed.out_height = 5, args.window = &changed));
    changed = window;
    REFUSED(COPPICE_SIZE, (changed.stride_x = 0, args.window = &changed));
    changed = window;
    REFUSED(COPPICE_STRIDE, (changed.row_stride = 5, args.window = &changed));
    REFUSED(COPPICE_ALIGNMENT, args.x = (const char *)args.x + 2);
    free_trial(&t);
}

void check_weight_gradient(void) {
    check_arguments();
    check_window_arguments();
    check_edges();
    check_random();
    check_windows();
    check_wide();
}
