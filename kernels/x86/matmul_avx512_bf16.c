/* matmul for AVX512-BF16: pairs of bf16 where the caller allows it, all else as without. */
#include "avx512_bf16.h"

#define DOT_PANEL_VECTORS(dense) 6
/* clang-format off */
#define TILE_CASES                                                                                                     \
    CASE(1, 2, 4) CASE(1, 4, 2) CASE(1, 6, 1) CASE(4, 1, 2) CASE(4, 2, 1) CASE(4, 3, 1) CASE(4, 4, 1) CASE(4, 5, 1)    \
    CASE(4, 6, 1) CASE(8, 1, 1) CASE(8, 2, 1) CASE(8, 3, 1) CASE(16, 1, 1)
/* clang-format on */

#include "../layouts.h"
#include "../vector/matmul_dot.h"

void coppice_matmul_avx512_bf16(const coppice_matmul_args *args) {
    if (args->arithmetic == COPPICE_BF16 && !coppice_is_packed(args->weight.layout) && lanes_are_pixels(args))
        matmul_dots(args);
    else
        coppice_matmul_avx512_vnni(args);
}
