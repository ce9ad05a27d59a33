/* The check of softmax. */
#include "check.h"

typedef struct trial {
    coppice_softmax_args args;
    char *x;
    output y;
} trial;

/* The exponent errs by u (1 + |its value|), u being an epsilon, and the exponential by 3 u of itself; the sum of n of
 * them by n u and as much as they do. */
static void reference(const coppice_softmax_args *args, int64_t row, output *y) {
    const double n = (double)args->pixels, u = (double)FLT_EPSILON;
    double greatest = -INFINITY, sum = 0, off = 0;
    for (int64_t i = 0; i < args->pixels; i++)
        greatest = fmax(greatest, (double)args->scale * get(args->type, args->x, row * args->x_stride + i));
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < args->pixels; i++) {
            const double t = (double)args->scale * get(args->type, args->x, row * args->x_stride + i) - greatest;
            const double value = exp(t), relative = isinf(t) ? 0 : (fabs(t) + fabs(greatest) + 4) * u;
            if (pass == 0) {
                sum += value;
                off += value * relative;
                continue;
            }
            const int64_t at = row * args->pixels + i;
            y->expected[at] = value / sum;
            y->bound[at] = rounding(args->type, value / sum, value / sum * (relative + off / sum + (n + 4) * u));
        }
}

static trial make_trial(int32_t type, int64_t rows, int64_t pixels, float scale, int special) {
    const int64_t x_stride = pixels + random_below(2) * random_below(9), in_place = random_below(3) == 0;
    const int64_t y_stride = in_place ? x_stride : pixels + random_below(2) * random_below(9);
    const int64_t count = extent(rows, pixels, x_stride);
    trial t = {.x = random_elements(type, count, 0), .y = make_output(type, rows, pixels, y_stride)};
    for (int64_t i = 0; i < count && random_below(2); i++)
        put(type, t.x, i, (float)get(type, t.x, i) * 40);
    for (int64_t i = 0; i < count && special; i++)
        if (random_below(special) == 0)
            put(type, t.x, i, -INFINITY);
    if (special > 2)
        make_special(type, t.x, count);
    t.args = (coppice_softmax_args){.type = type,
                                    .scale = scale,
                                    .rows = rows,
                                    .pixels = pixels,
                                    .x = t.x,
                                    .x_stride = x_stride,
                                    .y = start_of(&t.y, t.y.after),
                                    .y_stride = y_stride};
    give_scratch(&t.args.work, coppice_softmax_scratch(&t.args));
    for (int64_t row = 0; row < rows; row++)
        reference(&t.args, row, &t.y);
    if (in_place) {
        memcpy(start_of(&t.y, t.y.before), t.x, (size_t)t.y.count * size_of(type));
        t.args.x = t.args.y;
    }
    return t;
}

static void free_trial(trial *t) {
    free(t->args.work.scratch);
    free(t->x);
    free_output(&t->y);
}

/* special 1: nothing but -inf. */
static void check_random(void) {
    static const float scales[] = {1, 0.125f, -0.3f, 3, 0};
    for (int round = 0; round < rounds(900); round++) {
        const int32_t type = (int32_t)random_below(3), special = round % 5 ? 0 : 1 + (int32_t)random_below(4);
        const int64_t rows = random_below(12), pixels = random_below(200);
        const float scale = scales[random_below(5)];
        trial t = make_trial(type, rows, pixels, scale, special);
        char what[160];
        snprintf(what, sizeof what, "type %d, %lld x %lld, scale %g, special %d", (int)type, (long long)rows,
                 (long long)pixels, (double)scale, (int)special);
        check_variants("softmax", &t.args, &t.y, what);
        free_trial(&t);
    }
}

#define REFUSED(expected, change)                                                                                      \
    do {                                                                                                               \
        coppice_softmax_args args = t.args;                                                                            \
        change;                                                                                                        \
        expect_status(coppice_softmax(&args), expected, #change);                                                      \
    } while (0)

static void check_arguments(void) {
    trial t = make_trial(COPPICE_F32, 3, 12, 1, 0);
    REFUSED(COPPICE_OK, args.scale = 2);
    REFUSED(COPPICE_TYPE, args.type = COPPICE_I8);
    REFUSED(COPPICE_SIZE, args.rows = -1);
    REFUSED(COPPICE_SIZE, args.pixels = INT64_MAX);
    REFUSED(COPPICE_STRIDE, args.x_stride = 11);
    REFUSED(COPPICE_STRIDE, args.y_stride = -1);
    REFUSED(COPPICE_NULL, args.x = NULL);
    REFUSED(COPPICE_NULL, args.y = NULL);
    REFUSED(COPPICE_NULL, args.work.scratch = NULL);
    REFUSED(COPPICE_ALIGNMENT, args.x = (const char *)args.x + 2);
    REFUSED(COPPICE_ALIGNMENT, args.y = (char *)args.y + 1);
    REFUSED(COPPICE_SHARE, args.work.shares = 0);
    REFUSED(COPPICE_SCRATCH, args.work.scratch_bytes--);
    expect_status(coppice_softmax(NULL), COPPICE_NULL, "arguments");
    expect_status(coppice_softmax_scratch(NULL), COPPICE_NULL, "arguments of scratch");
    free_trial(&t);
}

void check_softmax(void) {
    check_arguments();
    check_random();
}
