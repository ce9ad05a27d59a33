/* matmul for NEON with FEAT_FP16: fp16 arithmetic where the caller allows it, all else as without. */
#include "neon_fp16.h"

#include "../layouts.h"

#define HALF_PANEL_VECTORS(height) 12
#define HALF_TILE_VECTORS(height)  ((height) == 1 ? 12 : 6)
/* clang-format off */
#define TILE_CASES                                                                                                     \
    CASE(1, 1, 4) CASE(1, 2, 4) CASE(1, 3, 4) CASE(1, 4, 4) CASE(1, 5, 2) CASE(1, 6, 2) CASE(1, 7, 2) CASE(1, 8, 2)    \
    CASE(1, 9, 1) CASE(1, 10, 1) CASE(1, 11, 1) CASE(1, 12, 1)                                                         \
    CASE(4, 1, 4) CASE(4, 2, 2) CASE(4, 3, 1) CASE(4, 4, 1) CASE(4, 5, 1) CASE(4, 6, 1) CASE(8, 1, 2) CASE(8, 2, 1)    \
    CASE(16, 1, 1)
/* clang-format on */

#include "../vector/matmul_f16.h"

void coppice_matmul_neon_fp16(const coppice_matmul_args *args) {
    if (allows_halves(args))
        matmul_halves(args);
    else
        coppice_matmul_neon(args);
}
