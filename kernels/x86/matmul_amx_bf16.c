/* matmul for AMX with bf16: dense weights by tiles where the caller allows it, all else as without. */
#include "avx512_bf16.h"

#define TILE_DOT TILE_DOT_BF16

#include "matmul_amx.h"

void coppice_matmul_amx_bf16(const coppice_matmul_args *args) {
    if (args->arithmetic == COPPICE_BF16 && args->weight.layout == COPPICE_DENSE && !is_few_pixels(args))
        matmul_tiles(args);
    else
        coppice_matmul_amx_int8(args);
}
