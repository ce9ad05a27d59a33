/* Problems of matmul, for the files that check it. */
#ifndef COPPICE_CHECK_MATMUL_H
#define COPPICE_CHECK_MATMUL_H

#include "check.h"

typedef struct problem {
    int64_t rows, cols, pixels, slab; /* cols and pixels are of the window where there is one */
    double density;
    int64_t height; /* of the bands; 0: dense, in bands of 4, 8 or 16 */
    int32_t packed; /* a layout for few pixels in its place, or 0 */
    int32_t kept, group;
    int32_t weight_type, type, activation, arithmetic;
    int special; /* some infinities and NaN in x */
    const coppice_window *window;
} problem;

/* A problem made concrete: arguments and output. */
typedef struct trial {
    coppice_matmul_args args;
    coppice_weight lists, packed;
    char *x, *residual;
    float *bias;
    double *units; /* of each pixel, what COPPICE_I8 rounds to multiples of; or NULL */
    int64_t x_offset;
    output y;
} trial;

trial make_trial(problem p);
void free_trial(trial *t);

/* The result in fp64, and how far off it may be. */
double reference(const trial *t, int64_t row, int64_t pixel, double *bound);

/* All variants, and straight-line code. */
void check_problem(problem p);

/* Of bands; 0: dense. */
int64_t random_height(void);

void check_arithmetic(void);
void check_matmul_arguments(void);

#endif
