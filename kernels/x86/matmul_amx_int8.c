/* matmul for AMX with integers: dense weights by tiles where the caller allows it, all else as without. */
#include "avx512_vnni.h"

#define TILE_DOT TILE_DOT_BYTES

#include "matmul_amx.h"

void coppice_matmul_amx_int8(const coppice_matmul_args *args) {
    const int bytes = args->arithmetic == COPPICE_I8 && args->weight.type == COPPICE_I8;
    if (bytes && args->weight.layout == COPPICE_DENSE && !is_few_pixels(args))
        matmul_tiles(args);
    else
        coppice_matmul_avx512_fp16(args);
}
