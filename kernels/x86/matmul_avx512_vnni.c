/* matmul for AVX-512 with VNNI, VBMI and VBMI2: integer arithmetic where the caller allows it, all else as without. */
#include "avx512.h"

#include "bitmask_bytes.h"
#include "sell.h"

void coppice_matmul_avx512_vnni(const coppice_matmul_args *args) {
    const int bytes = args->arithmetic == COPPICE_I8 && args->weight.type == COPPICE_I8;
    if (bytes && args->weight.layout == COPPICE_SELL && is_few_packed(args))
        repeat_few(args, matmul_sell);
    else if (bytes && args->weight.layout == COPPICE_BITMASK && is_few_packed(args))
        repeat_few(args, matmul_bitmask_bytes);
    else
        coppice_matmul_avx512(args);
}
