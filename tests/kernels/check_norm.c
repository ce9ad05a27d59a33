/* The check of norm. */
#include "check.h"

typedef struct trial {
    coppice_norm_args args;
    char *x;
    float *weight, *bias;
    output y;
} trial;

static double x_at(const coppice_norm_args *args, int64_t channel, int64_t token) {
    const int64_t row = args->token_rows ? token : channel, place = args->token_rows ? channel : token;
    return get(args->type, args->x, row * args->x_stride + place);
}

/* With u an epsilon, n channels and sigma = sqrt(variance + epsilon): the mean of n numbers errs by n u mean|x|, all
 * differences from it by as much, which adds its square to the variance; sums of n squares err by (n + 6) u of
 * themselves, and the rest is a few roundings. */
static void reference(const coppice_norm_args *args, int64_t token, output *y) {
    const double n = (double)args->channels, u = (double)FLT_EPSILON;
    double mean = 0, magnitude = 0, variance = 0;
    for (int64_t c = 0; c < args->channels && args->kind == COPPICE_LAYER_NORM; c++) {
        mean += x_at(args, c, token) / n;
        magnitude += fabs(x_at(args, c, token)) / n;
    }
    for (int64_t c = 0; c < args->channels; c++)
        variance += (x_at(args, c, token) - mean) * (x_at(args, c, token) - mean) / n;
    const double sigma = sqrt(variance + (double)args->epsilon), shift = n * u * magnitude;
    for (int64_t c = 0; c < args->channels; c++) {
        const double weight = args->weight ? (double)args->weight[c] : 1, bias = args->bias ? (double)args->bias[c] : 0;
        const double value = (x_at(args, c, token) - mean) / sigma, z = value * weight + bias;
        const double relative = shift * shift / sigma / sigma + (n + 12) * u;
        const double off = fabs(weight) * (shift / sigma + fabs(value) * relative) + 2 * u * (fabs(z) + fabs(bias));
        const int64_t i = args->token_rows ? token * args->channels + c : c * args->tokens + token;
        y->expected[i] = z;
        y->bound[i] = rounding(args->type, z, off);
    }
}

static trial make_trial(int32_t kind, int32_t type, int32_t token_rows, int64_t channels, int64_t tokens) {
    const int64_t rows = token_rows ? tokens : channels, pixels = token_rows ? channels : tokens;
    const int64_t x_stride = pixels + random_below(2) * random_below(9), in_place = random_below(3) == 0;
    const int64_t y_stride = in_place ? x_stride : pixels + random_below(2) * random_below(9);
    trial t = {.x = random_elements(type, extent(rows, pixels, x_stride), 0),
               .weight = (float *)(void *)random_elements(COPPICE_F32, channels, 0),
               .bias = (float *)(void *)random_elements(COPPICE_F32, channels, 0),
               .y = make_output(type, rows, pixels, y_stride)};
    t.args = (coppice_norm_args){.work.shares = 1,
                                 .kind = kind,
                                 .type = type,
                                 .token_rows = token_rows,
                                 .epsilon = random_below(2) ? 1e-5f : 1e-2f,
                                 .channels = channels,
                                 .tokens = tokens,
                                 .x = t.x,
                                 .x_stride = x_stride,
                                 .y = start_of(&t.y, t.y.after),
                                 .y_stride = y_stride,
                                 .weight = random_below(2) ? t.weight : NULL,
                                 .bias = random_below(2) ? t.bias : NULL};
    if (random_below(4) == 0) /* far from zero: what a variance from sums of squares would not survive */
        for (int64_t i = 0; i < extent(rows, pixels, x_stride); i++)
            put(type, t.x, i, (float)get(type, t.x, i) + 100);
    if (random_below(6) == 0)
        make_special(type, t.x, extent(rows, pixels, x_stride));
    for (int64_t token = 0; token < tokens; token++)
        reference(&t.args, token, &t.y);
    if (in_place) {
        memcpy(start_of(&t.y, t.y.before), t.x, (size_t)t.y.count * size_of(type));
        t.args.x = t.args.y;
    }
    return t;
}

static void free_trial(trial *t) {
    free(t->x);
    free(t->weight);
    free(t->bias);
    free_output(&t->y);
}

static void check_random(void) {
    for (int round = 0; round < rounds(1200); round++) {
        const int32_t kind = (int32_t)random_below(2), type = (int32_t)random_below(3);
        const int32_t token_rows = (int32_t)random_below(2);
        const int64_t channels = random_below(round % 2 ? 20 : 200), tokens = random_below(150);
        trial t = make_trial(kind, type, token_rows, channels, tokens);
        char what[160];
        snprintf(what, sizeof what, "kind %d, type %d, %lld channels, %lld tokens, %s", (int)kind, (int)type,
                 (long long)channels, (long long)tokens, token_rows ? "in rows" : "in columns");
        check_variants("norm", &t.args, &t.y, what);
        free_trial(&t);
    }
}

#define REFUSED(expected, change)                                                                                      \
    do {                                                                                                               \
        coppice_norm_args args = t.args;                                                                               \
        change;                                                                                                        \
        expect_status(coppice_norm(&args), expected, #change);                                                         \
    } while (0)

static void check_arguments(void) {
    trial t = make_trial(COPPICE_LAYER_NORM, COPPICE_F32, 0, 5, 12);
    t.args.weight = t.weight, t.args.bias = t.bias;
    REFUSED(COPPICE_OK, args.epsilon = 0);
    REFUSED(COPPICE_KIND, args.kind = 2);
    REFUSED(COPPICE_KIND, args.kind = -1);
    REFUSED(COPPICE_TYPE, args.type = COPPICE_I8);
    REFUSED(COPPICE_EPSILON, args.epsilon = -1);
    REFUSED(COPPICE_EPSILON, args.epsilon = INFINITY);
    REFUSED(COPPICE_EPSILON, args.epsilon = NAN);
    REFUSED(COPPICE_SIZE, args.channels = -1);
    REFUSED(COPPICE_SIZE, args.tokens = (int64_t)1 << 31);
    REFUSED(COPPICE_STRIDE, args.x_stride = 11);
    REFUSED(COPPICE_STRIDE, args.y_stride = INT64_MAX);
    REFUSED(COPPICE_NULL, args.x = NULL);
    REFUSED(COPPICE_NULL, args.y = NULL);
    REFUSED(COPPICE_ALIGNMENT, args.x = (const char *)args.x + 2);
    REFUSED(COPPICE_ALIGNMENT, args.y = (char *)args.y + 1);
    REFUSED(COPPICE_ALIGNMENT, args.weight = (const float *)(const void *)((const char *)args.weight + 1));
    REFUSED(COPPICE_ALIGNMENT, args.bias = (const float *)(const void *)((const char *)args.bias + 2));
    REFUSED(COPPICE_SHARE, args.work.share = 1);
    expect_status(coppice_norm(NULL), COPPICE_NULL, "arguments");
    free_trial(&t);
}

void check_norm(void) {
    check_arguments();
    check_random();
}
