/* Bytes of a fuzzer as a coppice_weight. */
#ifndef COPPICE_FUZZ_ARRAYS_H
#define COPPICE_FUZZ_ARRAYS_H

#include "kernels.h"

enum { most_elements = 1 << 17 };

/* The bytes of the fuzzer, then, so that short inputs make whole weights, those of a generator that they began. */
typedef struct source {
    const uint8_t *at, *end;
    uint32_t state;
} source;

/* A number in 0 .. limit - 1. */
int64_t below(source *s, int64_t limit);

/* NULL where there would be more than a test can hold. */
void *array(int64_t count, int64_t size);

/* Numbers whose sums are exact to a few digits, and now and then any bits at all. */
void fill_elements(source *s, int32_t type, void *data, int64_t count);

/* The blocks of memory that a weight lies in. */
typedef struct blocks {
    void *starts, *columns, *values, *scales, *masks, *positions, *offsets, *lanes;
} blocks;

/* A weight whose arrays have exactly the sizes that abi.h gives them, so that the address sanitizer sees any read past
 * one; as a rule it is valid. */
coppice_weight random_weight(source *s, blocks *held);

void free_blocks(const blocks *held);

#endif
