/* matmul for NEON: thirty-two registers of four lanes. */
#include "neon.h"

#define PANEL_VECTORS(height) 20
#define TILE_VECTORS(height)  ((height) == 1 ? 20 : 5)
/* clang-format off */
#define TILE_CASES                                                                                                     \
    CASE(1, 1, 4) CASE(1, 2, 4) CASE(1, 3, 4) CASE(1, 4, 4) CASE(1, 5, 2) CASE(1, 6, 2) CASE(1, 7, 2) CASE(1, 8, 2)    \
    CASE(1, 9, 1) CASE(1, 10, 1) CASE(1, 11, 1) CASE(1, 12, 1) CASE(1, 13, 1) CASE(1, 14, 1) CASE(1, 15, 1)            \
    CASE(1, 16, 1) CASE(1, 17, 1) CASE(1, 18, 1) CASE(1, 19, 1) CASE(1, 20, 1)                                         \
    CASE(4, 1, 4) CASE(4, 2, 2) CASE(4, 3, 1) CASE(4, 4, 1) CASE(4, 5, 1) CASE(8, 1, 2) CASE(8, 2, 1) CASE(16, 1, 1)
/* clang-format on */

#include "../vector/matmul.h"

void coppice_matmul_neon(const coppice_matmul_args *args) {
    matmul_vectors(args);
}
