/* The check of depthwise. */
#include "check.h"

typedef struct trial {
    coppice_depthwise_args args;
    char *x;
    float *weight, *bias;
    int32_t *sources;
    output y;
} trial;

/* Of n products and the bias, each of the n + 1 roundings errs by at most half an epsilon of the sum of magnitudes; the
 * bound is twice that. */
static double reference(const coppice_depthwise_args *args, int64_t row, int64_t pixel, double *bound) {
    const coppice_window *w = &args->window;
    const int64_t taps = w->kernel_y * w->kernel_x, source = args->sources ? args->sources[row] : row;
    double sum = args->bias ? (double)args->bias[row] : 0, magnitude = fabs(sum);
    for (int64_t tap = 0; tap < taps; tap++) {
        int64_t y, x;
        if (!window_place(w, pixel, tap, &y, &x))
            continue;
        const double product = (double)args->weight[row * taps + tap] *
                               get(args->type, args->x, source * w->channel_stride + y * w->row_stride + x);
        sum += product;
        magnitude += fabs(product);
    }
    const double off = (double)(taps + 1) * (double)FLT_EPSILON * magnitude;
    return finished(args->activation, args->lower, args->upper, args->type, sum, off, bound);
}

static trial make_trial(const coppice_window *w, int32_t type, int32_t activation, int special) {
    const int64_t pixels = w->out_height * w->out_width, clamp = random_below(3);
    const int64_t rows = w->channels && random_below(2) ? random_below(9) : w->channels;
    const int mapped = rows != w->channels || random_below(2);
    trial t = {.x = random_elements(type, window_extent(w), 0),
               .weight = (float *)(void *)random_elements(COPPICE_F32, rows * w->kernel_y * w->kernel_x, 0),
               .bias = (float *)(void *)random_elements(COPPICE_F32, rows, 0),
               .sources = allocate((size_t)rows * sizeof(int32_t)),
               .y = make_output(type, rows, pixels, pixels + random_below(2) * random_below(9))};
    for (int64_t row = 0; row < rows && mapped; row++)
        t.sources[row] = (int32_t)(random_below(3) || !row ? random_below(w->channels) : t.sources[row - 1]);
    if (special)
        make_special(type, t.x, window_extent(w));
    t.args = (coppice_depthwise_args){.window = *w,
                                      .type = type,
                                      .activation = activation,
                                      .rows = rows,
                                      .sources = mapped ? t.sources : NULL,
                                      .weight = t.weight,
                                      .bias = random_below(2) ? t.bias : NULL,
                                      .x = t.x,
                                      .y = start_of(&t.y, t.y.after),
                                      .y_stride = t.y.stride,
                                      .lower = clamp > 0 ? 0 : -INFINITY,
                                      .upper = clamp > 1 ? 6 : INFINITY};
    give_scratch(&t.args.work, coppice_depthwise_scratch(&t.args));
    for (int64_t i = 0; i < rows * pixels; i++)
        t.y.expected[i] = reference(&t.args, i / pixels, i % pixels, &t.y.bound[i]);
    return t;
}

static void free_trial(trial *t) {
    free(t->args.work.scratch);
    free(t->x);
    free(t->weight);
    free(t->bias);
    free(t->sources);
    free_output(&t->y);
}

static void check_problem(const coppice_window *w, int32_t type, int32_t activation, int special) {
    trial t = make_trial(w, type, activation, special);
    char what[240];
    snprintf(what, sizeof what,
             "%lld rows of %lld x %lld x %lld, kernel %lld %lld, stride %lld %lld, dilation %lld %lld, pad %lld %lld, "
             "out %lld %lld, type %d, activation %d",
             (long long)t.args.rows, (long long)w->channels, (long long)w->height, (long long)w->width,
             (long long)w->kernel_y, (long long)w->kernel_x, (long long)w->stride_y, (long long)w->stride_x,
             (long long)w->dilation_y, (long long)w->dilation_x, (long long)w->pad_y, (long long)w->pad_x,
             (long long)w->out_height, (long long)w->out_width, (int)type, (int)activation);
    check_variants("depthwise", &t.args, &t.y, what);
    free_trial(&t);
}

static void check_random(void) {
    for (int round = 0; round < rounds(1500); round++) {
        const coppice_window w = random_window();
        check_problem(&w, (int32_t)random_below(3), (int32_t)random_below(5), round % 8 == 0);
    }
}

/* The kernels that march down rows, on images of every width and more rows than a tile and a band have. */
static void check_usual(void) {
    for (int64_t kernel = 3; kernel <= 5; kernel += 2)
        for (int64_t stride = 1; stride <= 2; stride++)
            for (int64_t width = 1; width < 60; width += 1 + random_below(4)) {
                const int64_t height = random_below(3) ? 1 + random_below(24) : 100 + random_below(60);
                const coppice_window w = {.channels = 1 + random_below(3),
                                          .height = height,
                                          .width = width,
                                          .row_stride = width,
                                          .channel_stride = height * width,
                                          .kernel_y = kernel,
                                          .kernel_x = kernel,
                                          .stride_y = stride,
                                          .stride_x = stride,
                                          .dilation_y = 1,
                                          .dilation_x = 1 + random_below(4) / 3,
                                          .pad_y = kernel / 2,
                                          .pad_x = kernel / 2,
                                          .out_height = (height - 1) / stride + 1,
                                          .out_width = (width - 1) / stride + 1};
                check_problem(&w, (int32_t)random_below(3), (int32_t)random_below(5) * (int32_t)random_below(2), 0);
            }
}

/* The same on images so narrow that channels share a register, with windows that begin and end anywhere. */
static void check_narrow(void) {
    for (int round = 0; round < rounds(800); round++) {
        const int64_t kernel = 3 + 2 * random_below(2), stride = 1 + random_below(2);
        const int64_t height = 1 + random_below(12), width = 1 + random_below(17);
        const coppice_window w = {.channels = 1 + random_below(40),
                                  .height = height,
                                  .width = width,
                                  .row_stride = width,
                                  .channel_stride = height * width,
                                  .kernel_y = kernel,
                                  .kernel_x = kernel,
                                  .stride_y = stride,
                                  .stride_x = stride,
                                  .dilation_y = 1,
                                  .dilation_x = 1,
                                  .pad_y = random_below(kernel + 2),
                                  .pad_x = random_below(kernel + 2),
                                  .out_height = random_below(height + 6),
                                  .out_width = random_below(width + 6)};
        check_problem(&w, (int32_t)random_below(3), (int32_t)random_below(5) * (int32_t)random_below(2), 0);
    }
}

#define REFUSED(expected, change)                                                                                      \
    do {                                                                                                               \
        coppice_depthwise_args args = t.args;                                                                          \
        change;                                                                                                        \
        expect_status(coppice_depthwise(&args), expected, #change);                                                    \
    } while (0)

static void check_arguments(void) {
    const int32_t beyond[] = {0, 1, 2, 3, 0, 0, 0, 0}, negative[] = {-1, 0, 0, 0, 0, 0, 0, 0};
    trial t = make_trial(&(coppice_window){3, 5, 6, 7, 40, 3, 3, 1, 1, 1, 1, 1, 1, 5, 6}, COPPICE_F32, 0, 0);
    t.args.rows = 3, t.args.sources = NULL, t.args.bias = t.bias;
    free(t.weight), free(t.bias), free_output(&t.y);
    t.weight = (float *)(void *)random_elements(COPPICE_F32, 27, 0);
    t.bias = (float *)(void *)random_elements(COPPICE_F32, 3, 0);
    t.y = make_output(COPPICE_F32, 3, 30, 30);
    t.args.weight = t.weight, t.args.bias = t.bias, t.args.y = start_of(&t.y, t.y.after), t.args.y_stride = 30;
    REFUSED(COPPICE_OK, args.lower = 0);
    REFUSED(COPPICE_TYPE, args.type = COPPICE_I8);
    REFUSED(COPPICE_ACTIVATION, args.activation = 5);
    REFUSED(COPPICE_CLAMP, (args.lower = 1, args.upper = 0));
    REFUSED(COPPICE_SHARE, args.work.share = 1);
    REFUSED(COPPICE_SIZE, args.rows = -1);
    REFUSED(COPPICE_SIZE, args.window.kernel_y = 0);
    REFUSED(COPPICE_SIZE, args.window.channels = INT64_MAX);
    REFUSED(COPPICE_SIZE, (args.window.kernel_y = INT32_MAX, args.window.kernel_x = INT32_MAX));
    REFUSED(COPPICE_SIZE, (args.window.kernel_x = INT32_MAX, args.window.dilation_x = INT32_MAX,
                           args.window.kernel_y = 2, args.window.dilation_y = INT32_MAX));
    REFUSED(COPPICE_SIZE, (args.window.out_height = 1 << 16, args.window.out_width = 1 << 16));
    REFUSED(COPPICE_STRIDE, args.window.row_stride = 5);
    REFUSED(COPPICE_STRIDE, args.window.channel_stride = 33);
    REFUSED(COPPICE_STRIDE, args.y_stride = 29);
    REFUSED(COPPICE_CHANNELS, args.rows = 2);
    REFUSED(COPPICE_CHANNELS, args.sources = beyond + 1);
    REFUSED(COPPICE_CHANNELS, args.sources = negative);
    REFUSED(COPPICE_NULL, args.x = NULL);
    REFUSED(COPPICE_NULL, args.y = NULL);
    REFUSED(COPPICE_NULL, args.weight = NULL);
    REFUSED(COPPICE_NULL, args.work.scratch = NULL);
    REFUSED(COPPICE_ALIGNMENT, args.x = (const char *)args.x + 2);
    REFUSED(COPPICE_ALIGNMENT, args.y = (char *)args.y + 1);
    REFUSED(COPPICE_ALIGNMENT, args.weight = (const float *)(const void *)((const char *)args.weight + 1));
    REFUSED(COPPICE_ALIGNMENT, args.bias = (const float *)(const void *)((const char *)args.bias + 2));
    REFUSED(COPPICE_ALIGNMENT, args.sources = (const int32_t *)(const void *)((const char *)beyond + 2));
    REFUSED(COPPICE_SCRATCH, args.work.scratch_bytes--);
    expect_status(coppice_depthwise(NULL), COPPICE_NULL, "arguments");
    expect_status(coppice_depthwise_scratch(NULL), COPPICE_NULL, "arguments of scratch");
    free_trial(&t);
}

void check_depthwise(void) {
    check_arguments();
    check_random();
    check_usual();
    check_narrow();
}
