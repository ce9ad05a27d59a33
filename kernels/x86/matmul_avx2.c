/* matmul for AVX2, FMA and F16C: sixteen registers. */
#include "avx2.h"

#define PANEL_VECTORS(height) ((height) == 1 ? 10 : 12)
#define TILE_VECTORS(height)  ((height) == 1 ? 10 : 3)
/* clang-format off */
#define TILE_CASES                                                                                                     \
    CASE(1, 1, 4) CASE(1, 2, 4) CASE(1, 3, 2) CASE(1, 4, 2) CASE(1, 5, 2) CASE(1, 6, 1) CASE(1, 7, 1) CASE(1, 8, 1)    \
    CASE(1, 9, 1) CASE(1, 10, 1) CASE(4, 1, 2) CASE(4, 2, 1) CASE(4, 3, 1) CASE(8, 1, 1)
/* clang-format on */

#include "../vector/matmul.h"

void coppice_matmul_avx2(const coppice_matmul_args *args) {
    matmul_vectors(args);
}
