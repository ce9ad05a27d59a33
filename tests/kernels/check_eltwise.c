/* The check of eltwise. */
#include "check.h"

typedef struct trial {
    coppice_eltwise_args args;
    char *x, *z;
    output y;
} trial;

/* Two products and a sum round by half an epsilon of the magnitudes each; the bound is twice that. */
static double reference(const coppice_eltwise_args *args, int64_t row, int64_t pixel, double *bound) {
    const double first = (double)args->a * get(args->x_type, args->x, row * args->x_stride + pixel);
    const double second = args->z ? (double)args->b * get(args->z_type, args->z, row * args->z_stride + pixel) : 0;
    const double off = 2 * (double)FLT_EPSILON * (fabs(first) + fabs(second));
    return finished(args->activation, args->lower, args->upper, args->y_type, first + second, off, bound);
}

static trial make_trial(int64_t rows, int64_t pixels, const int32_t types[3], int32_t activation, int special) {
    enum { apart, in_x, in_z };
    const int64_t clamp = random_below(3), place = random_below(3), gap = random_below(2) * random_below(9);
    const int in_place = place == in_x ? types[0] == types[2] : place == in_z && types[1] == types[2];
    const int64_t y_stride = pixels + gap, x_stride = in_place || !gap ? y_stride : pixels + random_below(5);
    const int64_t z_stride = in_place || !gap ? y_stride : pixels + random_below(5);
    trial t = {.x = random_elements(types[0], extent(rows, pixels, x_stride), 0),
               .z = random_elements(types[1], extent(rows, pixels, z_stride), 0),
               .y = make_output(types[2], rows, pixels, y_stride)};
    if (special)
        make_special(types[0], t.x, extent(rows, pixels, x_stride));
    t.args = (coppice_eltwise_args){.work.shares = 1,
                                    .x_type = types[0],
                                    .z_type = types[1],
                                    .y_type = types[2],
                                    .activation = activation,
                                    .a = random_below(2) ? 1 : random_value(),
                                    .b = random_below(2) ? 1 : random_value(),
                                    .rows = rows,
                                    .pixels = pixels,
                                    .x = t.x,
                                    .x_stride = x_stride,
                                    .z = random_below(3) || (in_place && place == in_z) ? t.z : NULL,
                                    .z_stride = z_stride,
                                    .y = start_of(&t.y, t.y.after),
                                    .y_stride = y_stride,
                                    .lower = clamp > 0 ? 0 : -INFINITY,
                                    .upper = clamp > 1 ? 6 : INFINITY};
    for (int64_t i = 0; i < rows * pixels; i++)
        t.y.expected[i] = reference(&t.args, i / pixels, i % pixels, &t.y.bound[i]);
    if (in_place) {
        memcpy(start_of(&t.y, t.y.before), place == in_x ? t.x : t.z, (size_t)t.y.count * size_of(types[2]));
        *(place == in_x ? &t.args.x : &t.args.z) = t.args.y;
    }
    return t;
}

static void free_trial(trial *t) {
    free(t->x);
    free(t->z);
    free_output(&t->y);
}

static void check_random(void) {
    for (int round = 0; round < rounds(1500); round++) {
        const int alike = random_below(2) == 0;
        const int32_t first = (int32_t)random_below(3), second = (int32_t)random_below(3);
        const int32_t types[] = {first, alike ? first : second, alike ? first : (int32_t)random_below(3)};
        const int64_t rows = random_below(10), pixels = random_below(100);
        const int32_t activation = (int32_t)random_below(5);
        trial t = make_trial(rows, pixels, types, activation, round % 6 == 0);
        char what[160];
        snprintf(what, sizeof what, "%lld x %lld, types %d %d %d, activation %d", (long long)rows, (long long)pixels,
                 (int)types[0], (int)types[1], (int)types[2], (int)activation);
        check_variants("eltwise", &t.args, &t.y, what);
        free_trial(&t);
    }
}

#define REFUSED(expected, change)                                                                                      \
    do {                                                                                                               \
        coppice_eltwise_args args = t.args;                                                                            \
        change;                                                                                                        \
        expect_status(coppice_eltwise(&args), expected, #change);                                                      \
    } while (0)

static void check_arguments(void) {
    const int32_t types[] = {COPPICE_F32, COPPICE_F16, COPPICE_F32};
    trial t = make_trial(3, 12, types, 0, 0);
    t.args.x = t.x, t.args.z = t.z;
    REFUSED(COPPICE_OK, args.b = 2);
    REFUSED(COPPICE_OK, (args.z = NULL, args.z_type = 9));
    REFUSED(COPPICE_TYPE, args.x_type = COPPICE_I8);
    REFUSED(COPPICE_TYPE, args.z_type = COPPICE_I8);
    REFUSED(COPPICE_TYPE, args.y_type = 4);
    REFUSED(COPPICE_ACTIVATION, args.activation = 5);
    REFUSED(COPPICE_CLAMP, args.lower = NAN);
    REFUSED(COPPICE_SIZE, args.rows = -1);
    REFUSED(COPPICE_SIZE, args.pixels = INT64_MAX);
    REFUSED(COPPICE_STRIDE, args.x_stride = 11);
    REFUSED(COPPICE_STRIDE, args.z_stride = 0);
    REFUSED(COPPICE_STRIDE, args.y_stride = -1);
    REFUSED(COPPICE_NULL, args.x = NULL);
    REFUSED(COPPICE_NULL, args.y = NULL);
    REFUSED(COPPICE_ALIGNMENT, args.x = (const char *)args.x + 2);
    REFUSED(COPPICE_ALIGNMENT, args.z = (const char *)args.z + 1);
    REFUSED(COPPICE_ALIGNMENT, args.y = (char *)args.y + 1);
    REFUSED(COPPICE_SHARE, args.work.share = 1);
    expect_status(coppice_eltwise(NULL), COPPICE_NULL, "arguments");
    free_trial(&t);
}

void check_eltwise(void) {
    check_arguments();
    check_random();
}
