/* weight_gradient for AVX-512: thirty-two registers. */
#include "avx512.h"

#define ROW_VECTORS 12
#define ROW_CHAINS  2
#define TILE_WIDTH  4
/* clang-format off */
#define ROW_CASES                                                                                                      \
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#define TILE_CASES CASE(1) CASE(2) CASE(3) CASE(4)
/* clang-format on */

#include "../vector/weight_gradient.h"

void coppice_weight_gradient_avx512(const coppice_weight_gradient_args *args) {
    weight_gradient_vectors(args);
}
