/* The check of matmul where arithmetic of fewer digits is allowed: what it may cost and what not. */
#include "check_matmul.h"

/* fp16 where it is allowed: sums of fp16 products, over windows too. */
static void check_f16_sums(void) {
    for (int round = 0; round < rounds(600); round++) {
        const coppice_window w = random_near_or_far_window();
        check_problem((problem){.rows = random_below(40),
                                .cols = random_below(300),
                                .pixels = random_below(260),
                                .slab = 1 + random_below(300),
                                .density = (double)random_below(11) / 10,
                                .height = random_height(),
                                .weight_type = random_below(8) ? COPPICE_F16 : COPPICE_F32,
                                .type = random_below(8) ? COPPICE_F16 : COPPICE_F32,
                                .activation = (int32_t)random_below(5),
                                .arithmetic = COPPICE_F16,
                                .special = round % 8 == 0,
                                .window = round % 3 ? NULL : &w});
    }
}

/* Pairs of bf16 and fours of bytes where they are allowed, with every number of entries left over. */
static void check_dots(void) {
    for (int round = 0; round < rounds(1200); round++) {
        const coppice_window w = random_near_or_far_window();
        const int32_t arithmetic = round % 2 ? COPPICE_BF16 : COPPICE_I8;
        const int same = random_below(4) > 0;
        check_problem((problem){.rows = random_below(40),
                                .cols = random_below(300),
                                .pixels = random_below(round % 5 ? 260 : 6),
                                .slab = 1 + random_below(300),
                                .density = (double)random_below(11) / 10,
                                .height = random_height(),
                                .weight_type = same ? arithmetic : (int32_t)random_below(4),
                                .type = (int32_t)random_below(3),
                                .activation = (int32_t)random_below(5),
                                .arithmetic = arithmetic,
                                .special = arithmetic == COPPICE_BF16 && round % 8 == 1,
                                .window = round % 3 ? NULL : &w});
    }
}

/* The error of fp16 sums as it usually is, much below its bound: relative, root mean square. */
static void check_f16_usual_error(void) {
    trial t = make_trial((problem){.rows = 24,
                                   .cols = 500,
                                   .pixels = 60,
                                   .slab = 192,
                                   .weight_type = COPPICE_F16,
                                   .type = COPPICE_F16,
                                   .arithmetic = COPPICE_F16});
    t.args.bias = NULL, t.args.residual = NULL, t.args.lower = -INFINITY, t.args.upper = INFINITY;
    const char *name;
    for (int32_t index = -1; (name = next_variant("matmul", &index));) {
        double errors = 0, squares = 0, bound;
        expect_status(coppice_variant_run(index, &t.args), COPPICE_OK, name);
        for (int64_t row = 0; row < t.args.weight.rows; row++)
            for (int64_t pixel = 0; pixel < t.args.pixels; pixel++) {
                const double exact = reference(&t, row, pixel, &bound);
                const double off = get(COPPICE_F16, t.args.y, row * t.args.y_stride + pixel) - exact;
                errors += off * off, squares += exact * exact;
            }
        expect(sqrt(errors / squares) < 2e-3, "fp16 sums are off by more than usual", name);
    }
    free_trial(&t);
}

/* fp16 cannot count beyond 2048: sums must leave it before. */
static void check_f16_count(void) {
    enum { many = 6000, pixels = 21 };
    uint16_t *ones = allocate(many * pixels * sizeof *ones), y[pixels];
    for (int64_t i = 0; i < many * pixels; i++)
        ones[i] = half_bits(COPPICE_F16, 1);
    coppice_matmul_args args = {.weight = {.layout = COPPICE_DENSE,
                                           .type = COPPICE_F16,
                                           .rows = 1,
                                           .cols = many,
                                           .slab = 65536,
                                           .height = 4,
                                           .entries = many,
                                           .values = ones},
                                .type = COPPICE_F16,
                                .arithmetic = COPPICE_F16,
                                .pixels = pixels,
                                .x = ones,
                                .x_stride = pixels,
                                .y = y,
                                .y_stride = pixels,
                                .lower = -INFINITY,
                                .upper = INFINITY};
    give_scratch(&args.work, coppice_matmul_scratch(&args));
    const char *name;
    for (int32_t index = -1; (name = next_variant("matmul", &index));) {
        int counted = coppice_variant_run(index, &args) == COPPICE_OK;
        for (int pixel = 0; pixel < pixels; pixel++)
            counted &= half_value(COPPICE_F16, y[pixel]) == many;
        expect(counted, "6000 ones are not 6000", name);
    }
    free(args.work.scratch), free(ones);
}

/* With NaN or infinity in a pixel, integers give NaN; what keeps to fp32 gives the sum. */
static void check_bytes_special(void) {
    for (int round = 0; round < 200; round++) {
        trial t = make_trial((problem){.rows = 40,
                                       .cols = 100,
                                       .pixels = 1 + random_below(5),
                                       .density = 0.2,
                                       .packed = round % 2 ? COPPICE_SELL : COPPICE_BITMASK,
                                       .weight_type = COPPICE_I8,
                                       .special = 1});
        t.args.arithmetic = COPPICE_I8, t.args.residual = NULL;
        const char *name;
        for (int32_t index = -1; (name = next_variant("matmul", &index));) {
            expect_status(coppice_variant_run(index, &t.args), COPPICE_OK, name);
            for (int64_t row = 0; row < 40; row++)
                for (int64_t pixel = 0; pixel < t.args.pixels; pixel++) {
                    double bound;
                    const double exact = reference(&t, row, pixel, &bound);
                    const double got = get(COPPICE_F32, t.args.y, row * t.args.y_stride + pixel);
                    expect(isnan(got) || got == exact || fabs(got - exact) <= bound, "special values", name);
                }
        }
        free_trial(&t);
    }
}

/* More products than 32 bits add up at a time, all of them the greatest, and x near the least of fp32. */
static void check_bytes_range(void) {
    enum { cols = 200000 };
    float *x = allocate(cols * sizeof *x), y;
    int8_t *values = allocate(cols);
    uint64_t masks[cols / 64];
    const uint32_t starts[] = {0, cols};
    memset(values, -128, cols);
    memset(masks, 0xff, sizeof masks);
    for (int round = 0; round < 3; round++) {
        const float magnitude = round == 0 ? 1.0f : round == 1 ? 3e38f / 3.3e7f : 1e-38f;
        for (int i = 0; i < cols; i++)
            x[i] = -magnitude;
        coppice_matmul_args args = {.weight = {.layout = COPPICE_BITMASK,
                                               .type = COPPICE_I8,
                                               .rows = 1,
                                               .cols = cols,
                                               .height = 1,
                                               .entries = cols,
                                               .starts = starts,
                                               .values = values,
                                               .masks = masks},
                                    .arithmetic = COPPICE_I8,
                                    .pixels = 1,
                                    .x = x,
                                    .x_stride = 1,
                                    .y = &y,
                                    .y_stride = 1,
                                    .lower = -INFINITY,
                                    .upper = INFINITY};
        give_scratch(&args.work, coppice_matmul_scratch(&args));
        const double exact = 128.0 * cols * (double)magnitude;
        const char *name;
        for (int32_t index = -1; (name = next_variant("matmul", &index));) {
            expect_status(coppice_variant_run(index, &args), COPPICE_OK, name);
            expect(fabs((double)y - exact) <= exact * 0.02, "sums of many bytes", name);
        }
        free(args.work.scratch);
    }
    free(x), free(values);
}

void check_arithmetic(void) {
    check_f16_sums();
    check_dots();
    check_f16_usual_error();
    check_f16_count();
    check_bytes_special();
    check_bytes_range();
}
