/* matmul for AVX512-VNNI, with VBMI and VBMI2: integers where the caller allows it, all else as without. */
#include "avx512_vnni.h"

#define DOT_PANEL_VECTORS(dense) ((dense) ? 6 : 4)
/* clang-format off */
#define TILE_CASES                                                                                                     \
    CASE(1, 4, 2) CASE(4, 1, 2) CASE(4, 2, 1) CASE(4, 3, 1) CASE(4, 4, 1) CASE(4, 5, 1) CASE(4, 6, 1) CASE(8, 1, 1)    \
    CASE(8, 2, 1) CASE(8, 3, 1) CASE(16, 1, 1)
/* clang-format on */

#include "../vector/matmul_dot.h"
#include "bitmask_bytes.h"
#include "matvec_vnni.h"
#include "sell.h"

void coppice_matmul_avx512_vnni(const coppice_matmul_args *args) {
    const int32_t layout = args->weight.layout;
    const int bytes = args->arithmetic == COPPICE_I8 && args->weight.type == COPPICE_I8;
    if (bytes && layout == COPPICE_SELL && is_few_packed(args))
        repeat_few(args, matmul_sell);
    else if (bytes && layout == COPPICE_BITMASK && is_few_packed(args))
        repeat_few(args, matmul_bitmask_bytes);
    else if (!bytes || coppice_is_packed(layout) || is_one_pixel(args))
        coppice_matmul_avx512(args);
    else if (is_few_pixels(args))
        matvec_bytes(args, aligned(args->work.scratch));
    else
        matmul_dots(args);
}
