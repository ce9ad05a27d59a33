/* The check of matmul: what it refuses, its weights, and its threads. */
#define _POSIX_C_SOURCE 200809L
#include "check_matmul.h"

#include <time.h>

#define REFUSED(expected, change)                                                                                      \
    do {                                                                                                               \
        coppice_matmul_args args = t.args;                                                                             \
        change;                                                                                                        \
        expect_status(coppice_matmul(&args), expected, #change);                                                       \
    } while (0)

static void check_arguments(void) {
    trial t = make_trial((problem){.rows = 4, .cols = 6, .pixels = 20, .slab = 3, .density = 0.5, .height = 1});
    t.args.bias = t.bias;
    t.args.residual = t.residual;
    REFUSED(COPPICE_OK, args.lower = 0);
    REFUSED(COPPICE_LAYOUT, args.weight.layout = 7);
    REFUSED(COPPICE_LAYOUT, args.weight.height = 2);
    REFUSED(COPPICE_LAYOUT, args.weight.layout = COPPICE_DENSE);
    REFUSED(COPPICE_TYPE, args.weight.type = 4);
    REFUSED(COPPICE_TYPE, args.type = COPPICE_I8);
    REFUSED(COPPICE_TYPE, args.type = -1);
    REFUSED(COPPICE_OK, args.arithmetic = COPPICE_F16);
    REFUSED(COPPICE_TYPE, args.arithmetic = 4);
    REFUSED(COPPICE_TYPE, args.arithmetic = -1);
    REFUSED(COPPICE_ACTIVATION, args.activation = 5);
    REFUSED(COPPICE_ACTIVATION, args.activation = -1);
    REFUSED(COPPICE_SHARE, args.work.share = 1);
    REFUSED(COPPICE_SHARE, args.work.share = -1);
    REFUSED(COPPICE_SHARE, args.work.shares = 0);
    REFUSED(COPPICE_SIZE, args.weight.rows = -1);
    REFUSED(COPPICE_SIZE, args.weight.rows = INT64_MAX);
    REFUSED(COPPICE_SIZE, args.weight.cols = -1);
    REFUSED(COPPICE_SIZE, args.weight.cols = (int64_t)1 << 31);
    REFUSED(COPPICE_SIZE, args.weight.slab = 0);
    REFUSED(COPPICE_SIZE, args.weight.slab = 65537);
    REFUSED(COPPICE_SIZE, args.weight.entries = -1);
    REFUSED(COPPICE_SIZE, args.weight.entries = (int64_t)1 << 32);
    REFUSED(COPPICE_SIZE, args.pixels = -1);
    REFUSED(COPPICE_SIZE, args.pixels = INT64_MAX);
    REFUSED(COPPICE_NULL, args.weight.starts = NULL);
    REFUSED(COPPICE_NULL, args.weight.columns = NULL);
    REFUSED(COPPICE_NULL, args.weight.values = NULL);
    REFUSED(COPPICE_NULL, args.x = NULL);
    REFUSED(COPPICE_NULL, args.y = NULL);
    REFUSED(COPPICE_NULL, args.work.scratch = NULL);
    REFUSED(COPPICE_ALIGNMENT, args.x = (const char *)args.x + 1);
    REFUSED(COPPICE_ALIGNMENT, args.y = (char *)args.y + 2);
    REFUSED(COPPICE_ALIGNMENT, args.bias = (const float *)(const void *)((const char *)args.bias + 3));
    REFUSED(COPPICE_ALIGNMENT, args.residual = (const char *)args.residual + 1);
    REFUSED(COPPICE_ALIGNMENT,
            args.weight.starts = (const uint32_t *)(const void *)((const char *)args.weight.starts + 2));
    REFUSED(COPPICE_ALIGNMENT, args.weight.values = (const char *)args.weight.values + 2);
    REFUSED(COPPICE_STRIDE, args.x_stride = 19);
    REFUSED(COPPICE_STRIDE, args.x_stride = INT64_MAX);
    REFUSED(COPPICE_STRIDE, args.y_stride = -20);
    REFUSED(COPPICE_STRIDE, args.residual_stride = 0);
    REFUSED(COPPICE_CLAMP, (args.lower = 1, args.upper = 0));
    REFUSED(COPPICE_CLAMP, args.upper = NAN);
    REFUSED(COPPICE_SCRATCH, args.work.scratch_bytes--);
    expect_status(coppice_matmul(NULL), COPPICE_NULL, "arguments");
    expect_status(coppice_matmul_scratch(NULL), COPPICE_NULL, "arguments of scratch");
    free_trial(&t);
}

#define WINDOW_REFUSED(expected, change)                                                                               \
    do {                                                                                                               \
        coppice_window changed = window;                                                                               \
        coppice_matmul_args args = t.args;                                                                             \
        args.window = &changed;                                                                                        \
        change;                                                                                                        \
        expect_status(coppice_matmul(&args), expected, #change);                                                       \
    } while (0)

static void check_window_arguments(void) {
    const coppice_window window = {3, 5, 6, 7, 40, 2, 2, 1, 1, 1, 1, 0, 0, 4, 5};
    trial t = make_trial((problem){.rows = 4, .slab = 8, .density = 0.5, .height = 4, .window = &window});
    WINDOW_REFUSED(COPPICE_OK, changed.pad_y = 1);
    WINDOW_REFUSED(COPPICE_WINDOW, changed.kernel_x = 3);
    WINDOW_REFUSED(COPPICE_WINDOW, changed.channels = INT32_MAX);
    WINDOW_REFUSED(COPPICE_WINDOW, changed.out_height = 5);
    WINDOW_REFUSED(COPPICE_SIZE, changed.stride_x = 0);
    WINDOW_REFUSED(COPPICE_SIZE, changed.dilation_y = 0);
    WINDOW_REFUSED(COPPICE_SIZE, changed.kernel_y = -1);
    WINDOW_REFUSED(COPPICE_SIZE, changed.pad_x = -1);
    WINDOW_REFUSED(COPPICE_SIZE, changed.pad_x = INT64_MAX);
    WINDOW_REFUSED(COPPICE_SIZE, changed.width = -1);
    WINDOW_REFUSED(COPPICE_STRIDE, changed.row_stride = 5);
    WINDOW_REFUSED(COPPICE_STRIDE, changed.channel_stride = 33);
    WINDOW_REFUSED(COPPICE_STRIDE, changed.row_stride = INT64_MAX);
    WINDOW_REFUSED(COPPICE_STRIDE, changed.channel_stride = INT64_MAX);
    WINDOW_REFUSED(COPPICE_NULL, args.x = NULL);
    WINDOW_REFUSED(COPPICE_ALIGNMENT, args.x = (const char *)args.x + 2);
    free_trial(&t);
}

static void check_weights(void) {
    const uint32_t starts[] = {0, 1, 3, 3, 4}, falling[] = {0, 3, 1, 3, 4}, late[] = {1, 1, 3, 3, 4};
    const uint16_t columns[] = {2, 0, 1, 1}, repeated[] = {2, 1, 1, 1}, outside[] = {3, 0, 1, 1}, past[] = {2, 0, 1, 2};
    const float values[] = {1, 2, 3, 4};
    const coppice_weight good = {.layout = COPPICE_SPARSE,
                                 .rows = 2,
                                 .cols = 5,
                                 .slab = 3,
                                 .height = 1,
                                 .entries = 4,
                                 .starts = starts,
                                 .columns = columns,
                                 .values = values};
    coppice_weight bad = good;
    expect_status(coppice_weight_validate(&good), COPPICE_OK, "good weight");
    expect_status(coppice_weight_validate(NULL), COPPICE_NULL, "no weight");
    bad.starts = falling;
    expect_status(coppice_weight_validate(&bad), COPPICE_STARTS, "falling starts");
    bad.starts = late;
    expect_status(coppice_weight_validate(&bad), COPPICE_STARTS, "starts past zero");
    bad = good, bad.entries = 5;
    expect_status(coppice_weight_validate(&bad), COPPICE_STARTS, "starts short of entries");
    bad = good, bad.columns = repeated;
    expect_status(coppice_weight_validate(&bad), COPPICE_COLUMNS, "repeated column");
    bad.columns = outside;
    expect_status(coppice_weight_validate(&bad), COPPICE_COLUMNS, "column outside its slab");
    bad.columns = past;
    expect_status(coppice_weight_validate(&bad), COPPICE_COLUMNS, "column outside the matrix");
    bad = good, bad.rows = 0, bad.cols = 0, bad.entries = 0, bad.columns = NULL, bad.values = NULL;
    expect_status(coppice_weight_validate(&bad), COPPICE_OK, "empty weight");
    bad = good, bad.layout = COPPICE_DENSE, bad.height = 4;
    expect_status(coppice_weight_validate(&bad), COPPICE_STARTS, "dense weight of too few entries");
}

void check_matmul_arguments(void) {
    check_arguments();
    check_window_arguments();
    check_weights();
}

/* --- threads -------------------------------------------------------------------------------------------------------
 */

void check_pool(void) {
    trial t = make_trial((problem){.rows = 37, .cols = 90, .pixels = 333, .slab = 40, .density = 0.3, .height = 4});
    for (int32_t threads = 1; threads <= 5; threads++) {
        const int64_t bytes = coppice_pool_bytes(threads);
        coppice_pool *pool = allocate((size_t)bytes);
        expect_status(coppice_pool_start(pool, bytes, threads), COPPICE_OK, "starting a pool");
        coppice_matmul_args args = t.args;
        args.work.scratch_bytes = coppice_matmul_scratch(&args) * threads;
        args.work.scratch = allocate((size_t)args.work.scratch_bytes);
        const char *name;
        for (int32_t index = -1; (name = next_variant("matmul", &index));) {
            for (int round = 0; round < 50; round++) {
                restore(&t.y);
                expect_status(coppice_pool_run(pool, index, &args), COPPICE_OK, "running in a pool");
                expect(right_result(&t.y) && kept_surroundings(&t.y), "wrong result in a pool", name);
                if (round % 10 == 9) { /* long enough for the threads to fall asleep */
                    const struct timespec pause = {0, 1000000};
                    nanosleep(&pause, NULL);
                }
            }
        }
        args.work.scratch_bytes -= 64 * threads;
        expect_status(coppice_pool_run(pool, 0, &args), COPPICE_SCRATCH, "too little scratch for all threads");
        expect_status(coppice_pool_run(pool, -1, &args), COPPICE_VARIANT_UNKNOWN, "no such variant in a pool");
        expect_status(coppice_pool_run(pool, 0, NULL), COPPICE_NULL, "no arguments in a pool");
        expect_status(coppice_pool_stop(pool), COPPICE_OK, "stopping a pool");
        expect_status(coppice_pool_run(pool, 0, &args), COPPICE_BUSY, "a pool that was stopped");
        free(args.work.scratch);
        free(pool);
    }
    expect_status(coppice_pool_bytes(0), COPPICE_THREADS, "no threads");
    expect_status(coppice_pool_bytes(257), COPPICE_THREADS, "too many threads");
    expect_status(coppice_pool_start(NULL, 1 << 20, 2), COPPICE_NULL, "no memory for a pool");
    coppice_pool *memory = allocate((size_t)coppice_pool_bytes(2));
    expect_status(coppice_pool_start(memory, 64, 2), COPPICE_SCRATCH, "little memory for a pool");
    expect_status(coppice_pool_start((coppice_pool *)(void *)((char *)memory + 8), 1 << 20, 2), COPPICE_ALIGNMENT,
                  "a pool off its line");
    free(memory);
    free_trial(&t);
}
