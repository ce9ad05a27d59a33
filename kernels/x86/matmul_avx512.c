/* matmul for AVX-512: thirty-two registers. */
#include "avx512.h"

#define PANEL_VECTORS(height) ((height) == 1 ? 5 : 6)
#define TILE_VECTORS(height)  ((height) == 1 ? 5 : 6)
/* clang-format off */
#define TILE_CASES                                                                                                     \
    CASE(1, 1, 4) CASE(1, 2, 2) CASE(1, 3, 2) CASE(1, 4, 1) CASE(1, 5, 1) CASE(4, 1, 2) CASE(4, 2, 1) CASE(4, 3, 1)    \
    CASE(4, 4, 1) CASE(4, 5, 1) CASE(4, 6, 1) CASE(8, 1, 1) CASE(8, 2, 1) CASE(8, 3, 1) CASE(16, 1, 1)
/* clang-format on */

#include "../vector/matmul.h"

void coppice_matmul_avx512(const coppice_matmul_args *args) {
    matmul_vectors(args);
}
