/* The check of pooling. */
#include "check.h"

typedef struct trial {
    coppice_pooling_args args;
    char *x;
    output y;
} trial;

/* A maximum is exact; n additions and the division err by half an epsilon of the magnitudes each: the bound is twice
 * that. */
static double reference(const coppice_pooling_args *args, int64_t channel, int64_t pixel, double *bound) {
    const coppice_window *w = &args->window;
    double greatest = -INFINITY, sum = 0, magnitude = 0, count = 0;
    for (int64_t tap = 0; tap < w->kernel_y * w->kernel_x; tap++) {
        int64_t y, x;
        const int inside = window_place(w, pixel, tap, &y, &x);
        count += inside || (args->count_padding && y < w->height + args->after_y && x < w->width + args->after_x);
        if (!inside)
            continue;
        const double value = get(args->type, args->x, channel * w->channel_stride + y * w->row_stride + x);
        sum += value;
        magnitude += fabs(value);
        greatest = isnan(value) || value > greatest ? value : greatest;
        if (isnan(value))
            break;
    }
    if (isnan(sum) && args->kind == COPPICE_AVERAGE_POOLING)
        greatest = NAN;
    const double result = args->kind == COPPICE_MAX_POOLING || isnan(greatest) ? greatest : sum / count;
    const double off = (count + 1) * (double)FLT_EPSILON * magnitude / count;
    *bound = args->kind == COPPICE_MAX_POOLING ? 0 : rounding(args->type, result, off);
    return result;
}

static trial make_trial(const coppice_window *w, int32_t kind, int32_t type, int32_t count_padding, int special) {
    const int64_t pixels = w->out_height * w->out_width;
    trial t = {.x = random_elements(type, window_extent(w), 0),
               .y = make_output(type, w->channels, pixels, pixels + random_below(2) * random_below(9))};
    if (special)
        make_special(type, t.x, window_extent(w));
    t.args = (coppice_pooling_args){.window = *w,
                                    .kind = kind,
                                    .type = type,
                                    .count_padding = count_padding,
                                    .after_y = random_below(4),
                                    .after_x = random_below(4),
                                    .x = t.x,
                                    .y = start_of(&t.y, t.y.after),
                                    .y_stride = t.y.stride};
    give_scratch(&t.args.work, coppice_pooling_scratch(&t.args));
    for (int64_t i = 0; i < w->channels * pixels; i++)
        t.y.expected[i] = reference(&t.args, i / pixels, i % pixels, &t.y.bound[i]);
    return t;
}

static void free_trial(trial *t) {
    free(t->args.work.scratch);
    free(t->x);
    free_output(&t->y);
}

/* Every fourth is over the whole of x, or of its rows. */
static void check_random(void) {
    for (int round = 0; round < rounds(1500); round++) {
        coppice_window w = random_window();
        if (round % 4 == 0 && w.width)
            w.kernel_x = w.width + random_below(3), w.dilation_x = 1, w.out_width = 1, w.pad_x = random_below(3);
        if (round % 8 == 0 && w.height)
            w.kernel_y = w.height, w.out_height = 1, w.pad_y = 0;
        const int32_t kind = (int32_t)random_below(2), type = (int32_t)random_below(3);
        const int32_t count_padding = (int32_t)random_below(2);
        trial t = make_trial(&w, kind, type, count_padding, round % 5 == 0);
        char what[240];
        snprintf(
            what, sizeof what,
            "kind %d of %lld x %lld x %lld, kernel %lld %lld, stride %lld %lld, dilation %lld %lld, pad %lld %lld, "
            "out %lld %lld, type %d, padding counts %d",
            (int)kind, (long long)w.channels, (long long)w.height, (long long)w.width, (long long)w.kernel_y,
            (long long)w.kernel_x, (long long)w.stride_y, (long long)w.stride_x, (long long)w.dilation_y,
            (long long)w.dilation_x, (long long)w.pad_y, (long long)w.pad_x, (long long)w.out_height,
            (long long)w.out_width, (int)type, (int)count_padding);
        check_variants("pooling", &t.args, &t.y, what);
        free_trial(&t);
    }
}

#define REFUSED(expected, change)                                                                                      \
    do {                                                                                                               \
        coppice_pooling_args args = t.args;                                                                            \
        change;                                                                                                        \
        expect_status(coppice_pooling(&args), expected, #change);                                                      \
    } while (0)

static void check_arguments(void) {
    const coppice_window window = {3, 5, 6, 7, 40, 3, 3, 1, 1, 1, 1, 1, 1, 5, 6};
    trial t = make_trial(&window, COPPICE_AVERAGE_POOLING, COPPICE_F32, 1, 0);
    REFUSED(COPPICE_OK, args.count_padding = 0);
    REFUSED(COPPICE_KIND, args.kind = 2);
    REFUSED(COPPICE_TYPE, args.type = COPPICE_I8);
    REFUSED(COPPICE_SIZE, args.after_y = -1);
    REFUSED(COPPICE_SIZE, args.after_x = INT64_MAX);
    REFUSED(COPPICE_SIZE, args.window.kernel_x = 0);
    REFUSED(COPPICE_SIZE, args.window.pad_y = -1);
    REFUSED(COPPICE_STRIDE, args.window.row_stride = 5);
    REFUSED(COPPICE_STRIDE, args.y_stride = 29);
    REFUSED(COPPICE_NULL, args.x = NULL);
    REFUSED(COPPICE_NULL, args.y = NULL);
    REFUSED(COPPICE_NULL, args.work.scratch = NULL);
    REFUSED(COPPICE_ALIGNMENT, args.x = (const char *)args.x + 2);
    REFUSED(COPPICE_ALIGNMENT, args.y = (char *)args.y + 1);
    REFUSED(COPPICE_SHARE, args.work.share = -1);
    REFUSED(COPPICE_SCRATCH, args.work.scratch_bytes--);
    expect_status(coppice_pooling(NULL), COPPICE_NULL, "arguments");
    expect_status(coppice_pooling_scratch(NULL), COPPICE_NULL, "arguments of scratch");
    free_trial(&t);
}

void check_pooling(void) {
    check_arguments();
    check_random();
}
