/* A sparse layer in C: four output channels from six input channels at 50 pixels, with bias and relu.
 *
 * Prints what the kernels run on and two checksums, the kernel's and that of a plain loop; exit status 1 if they
 * differ. */
#include <coppice/kernels.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { rows = 4, cols = 6, pixels = 50, entries = 9 };

/* The layer as compressed rows: row r has the entries starts[r] up to starts[r + 1]. With at most 65536 columns one
 * slab will do. */
static const uint32_t starts[rows + 1] = {0, 3, 5, 5, 9};
static const uint16_t columns[entries] = {0, 2, 5, 1, 4, 0, 1, 3, 5};
static const float values[entries] = {0.5f, -1.0f, 0.25f, 2.0f, -0.75f, 1.0f, -0.5f, 0.125f, 1.5f};
static const float bias[rows] = {0.125f, -0.25f, 0.5f, 0.0f};

static const coppice_weight weight = {.layout = COPPICE_SPARSE,
                                      .type = COPPICE_F32,
                                      .rows = rows,
                                      .cols = cols,
                                      .slab = cols,
                                      .height = 1,
                                      .entries = entries,
                                      .starts = starts,
                                      .columns = columns,
                                      .values = values};

static double plain_checksum(const float x[cols][pixels]) {
    double sum = 0;
    for (int row = 0; row < rows; row++)
        for (int pixel = 0; pixel < pixels; pixel++) {
            double z = (double)bias[row];
            for (uint32_t entry = starts[row]; entry < starts[row + 1]; entry++)
                z += (double)values[entry] * (double)x[columns[entry]][pixel];
            sum += (z > 0 ? z : 0) * (1 + pixel % 7);
        }
    return sum;
}

static int fail(const char *what, int32_t status) {
    fprintf(stderr, "%s: %s\n", what, coppice_status_text(status));
    return 1;
}

int main(void) {
    static float x[cols][pixels], y[rows][pixels];
    if (coppice_abi_version() != COPPICE_ABI_VERSION) {
        fprintf(stderr, "compiled for ABI %d, linked with %d\n", COPPICE_ABI_VERSION, (int)coppice_abi_version());
        return 1;
    }
    for (int col = 0; col < cols; col++)
        for (int pixel = 0; pixel < pixels; pixel++)
            x[col][pixel] = (float)((col * 37 + pixel * 11) % 64 - 32) / 16;

    /* Once per weight: the kernels trust what has passed. */
    int32_t status = coppice_weight_validate(&weight);
    if (status != COPPICE_OK)
        return fail("weight", status);

    coppice_matmul_args args = {.work = {.share = 0, .shares = 1},
                                .weight = weight,
                                .type = COPPICE_F32,
                                .activation = COPPICE_CLAMP_ONLY,
                                .pixels = pixels,
                                .x = x,
                                .x_stride = pixels,
                                .y = y,
                                .y_stride = pixels,
                                .bias = bias,
                                .lower = 0,
                                .upper = INFINITY};

    /* The library allocates nothing: scratch is ours, and serves any later call that asks for no more. */
    args.work.scratch_bytes = coppice_matmul_scratch(&args);
    if (args.work.scratch_bytes < 0)
        return fail("scratch", (int32_t)args.work.scratch_bytes);
    args.work.scratch = malloc((size_t)args.work.scratch_bytes);
    status = args.work.scratch ? coppice_matmul(&args) : COPPICE_NULL;
    free(args.work.scratch);
    if (status != COPPICE_OK)
        return fail("matmul", status);

    double checksum = 0;
    for (int row = 0; row < rows; row++)
        for (int pixel = 0; pixel < pixels; pixel++)
            checksum += (double)y[row][pixel] * (1 + pixel % 7);
    const double expected = plain_checksum(x);
    printf("coppice kernels: ABI %d, running on %s\n", (int)coppice_abi_version(),
           coppice_isa_name(coppice_isa_active()));
    printf("checksum %.4f, of a plain loop %.4f\n", checksum, expected);
    return fabs(checksum - expected) > 1e-3;
}
