/* What the files of the check program share. */
#ifndef COPPICE_CHECK_H
#define COPPICE_CHECK_H

#include "abi.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Elements around an output that must stay as they are. */
enum { guard = 24 };

void expect(int holds, const char *what, const char *where);
void expect_status(int64_t got, int32_t expected, const char *what);

/* What is left of so many rounds where the check is thinned, and whether to do the next of some problems. */
int rounds(int whole);
int taken(void);

uint32_t random_bits(void);
int64_t random_below(int64_t limit);

/* Both signs, several magnitudes, now and then zero. */
float random_value(void);

/* On a cache line; free it. */
void *allocate(size_t bytes);

size_t size_of(int32_t type);

/* The bits of a half that `value` is, and the other way round. */
uint16_t half_bits(int32_t type, float value);
double half_value(int32_t type, uint16_t bits);

void put(int32_t type, void *data, int64_t index, float value);
double get(int32_t type, const void *data, int64_t index);

/* `count` elements that start `offset` elements past a cache line; free(result - offset elements). */
char *random_elements(int32_t type, int64_t count, int64_t offset);

/* Some NaN and infinities among `count` elements. */
void make_special(int32_t type, void *data, int64_t count);

/* Elements from the first of a matrix to one past its last. */
int64_t extent(int64_t rows, int64_t pixels, int64_t stride);

int64_t ceiling(int64_t a, int64_t b);

double activated(int32_t activation, double z);

/* clamp(activation(sum)), and how far off it may be where the sum may be `off`: no activation is steeper than 1.5,
 * those with an exponential may be off by 4e-7 of 1 + |sum| themselves, and then comes the rounding to `type`. */
double finished(int32_t activation, float lower, float upper, int32_t type, double sum, double off, double *bound);

/* `off` and what rounding a value within it of `value` to `type` may add. */
double rounding(int32_t type, double value, double off);

/* A result [rows][pixels] between guards, what it must be and how far off it may be. */
typedef struct output {
    int32_t type;
    int64_t rows, pixels, stride, count;
    char *before, *after;     /* guard, count, guard elements */
    double *expected, *bound; /* [rows][pixels] */
} output;

output make_output(int32_t type, int64_t rows, int64_t pixels, int64_t stride);
void free_output(output *y);

/* Where the result begins, before a call and after it. */
void *start_of(const output *y, char *memory);

/* As it was before any call. */
void restore(output *y);

int right_result(const output *y);
int kept_surroundings(const output *y);

/* A window that any primitive may be given, of random sizes. */
coppice_window random_window(void);

/* One in eight is out of x at a stroke, by its strides, dilations or pads: for what lays out no padded x. */
coppice_window random_near_or_far_window(void);

/* Elements of the x of a window. */
int64_t window_extent(const coppice_window *w);

/* Whether x has element (*y, *x) for a tap of an output pixel. */
int window_place(const coppice_window *w, int64_t pixel, int64_t tap, int64_t *y, int64_t *x);

/* What column `column` of x, or of its windows, holds at `pixel`. */
double column_at(int32_t type, const void *x, int64_t stride, const coppice_window *w, int64_t column, int64_t pixel);

/* A weight of the layout, sizes and type of w; a dense one has lists too. */
coppice_weight random_weight(coppice_weight w, double density);
void free_weight(coppice_weight *weight);

/* A dense weight has no lists, which the library must not need; what they would say is kept for the reference. */
coppice_weight without_lists(coppice_weight weight);

/* Scratch of so many bytes in work, for one share. */
void give_scratch(coppice_work *work, int64_t bytes);

/* The name of the next variant of a primitive that this machine can run, and *index, which is -1 at first; NULL: there
 * are no more. */
const char *next_variant(const char *primitive, int32_t *index);

/* Runs all available variants of a primitive in 1 to 4 shares, the last one first, and looks at y. args begins with a
 * coppice_work. */
void check_variants(const char *primitive, void *args, output *y, const char *what);

/* A weight of a layout for few pixels, of the sizes of w, and the same as CSR of one slab. They share scales. */
coppice_weight random_packed(coppice_weight w, double density, coppice_weight *lists);
void free_packed(coppice_weight *w);

void check_layouts(void);
void check_matmul(const char *shapes);
void check_pool(void);
void check_weight_gradient(void);
void check_depthwise(void);
void check_norm(void);
void check_softmax(void);
void check_pooling(void);
void check_eltwise(void);

#endif
