/* depthwise for AVX-512. */
#include "avx512.h"

#include "../vector/depthwise.h"
#include "depthwise_rows.h"

void coppice_depthwise_avx512(const coppice_depthwise_args *args) {
    if (is_usual(&args->window))
        depthwise_rows(args);
    else
        depthwise_vectors(args);
}
