/* matmul for AVX-512: thirty-two registers. */
#include "avx512.h"
#include "code.h"

#define PANEL_VECTORS(height) ((height) == 1 ? 5 : 6)
#define TILE_VECTORS(height)  ((height) == 1 ? 5 : 6)
/* clang-format off */
#define TILE_CASES                                                                                                     \
    CASE(1, 1, 4) CASE(1, 2, 2) CASE(1, 3, 2) CASE(1, 4, 1) CASE(1, 5, 1) CASE(4, 1, 2) CASE(4, 2, 1) CASE(4, 3, 1)    \
    CASE(4, 4, 1) CASE(4, 5, 1) CASE(4, 6, 1) CASE(8, 1, 1) CASE(8, 2, 1) CASE(8, 3, 1) CASE(16, 1, 1)
/* clang-format on */

#include "../vector/matmul.h"

#include "bitmask.h"
#include "n_of_m.h"
#include "sell_gather.h"

/* Tiles that share a chunk's code while it is hot, so that their x stays in the first-level cache. */
enum { code_tiles = 6, code_x_bytes = 98304 };

static const float no_bias[CODE_ROWS];

/* A group of tiles, packed behind each other in `room`: all chunks from first to end over all slabs. */
static void run_group(pass *p, const code_header *code, int64_t tile, int tiles, int64_t first, int64_t end,
                      float *room) {
    const coppice_matmul_args *args = p->args;
    const coppice_weight *weight = &args->weight;
    const int64_t slabs = coppice_slabs(weight), chunks = code_chunks(weight->rows);
    const int64_t width = weight->cols < weight->slab ? weight->cols : weight->slab;
    const char *base = (const char *)code;
    outline drawn;
    for (int64_t slab = 0; slab < slabs; slab++) {
        for (int t = 0; t < tiles; t++) {
            const int64_t pixel = (tile + t) * LANES, left = args->pixels - pixel;
            panel part = {.first = pixel, .vectors = 1, .tail = left < LANES ? (int)left : 0};
            part.outline = outline_of(part, args->window, &drawn);
            packed(args, slab, part, room + t * width * LANES);
        }
        for (int64_t chunk = first; chunk < end; chunk++) {
            const code_chunk *own = &code->chunk[slab * chunks + chunk];
            const int64_t row = code_first_row(weight->rows, chunk);
            code_call call = {.bias = p->in_y && args->bias ? args->bias + row : no_bias,
                              .lower = args->lower,
                              .upper = args->upper,
                              .y_stride = p->stride * (int64_t)sizeof(float),
                              .residual_stride = args->residual_stride * (int64_t)sizeof(float)};
            call.flags = slab == 0 ? CODE_FIRST : 0;
            if (p->in_y && args->residual)
                call.flags |= CODE_RESIDUAL;
            if (p->in_y && slab + 1 == slabs)
                call.flags |= CODE_CLAMP;
            for (int t = 0; t < tiles; t++) {
                float *y = p->sums + row * p->stride + t * LANES;
                if (p->in_y && args->residual)
                    call.residual = (const float *)args->residual + row * args->residual_stride + (tile + t) * LANES;
                ((code_function *)(uintptr_t)(base + own->code))(
                    room + t * width * LANES, (const float *)(const void *)(base + own->values), y, &call);
            }
        }
    }
}

/* Tiles are dealt to the shares where there are enough of them, else chunks. */
static void run_code(const coppice_matmul_args *args) {
    const coppice_weight *weight = &args->weight;
    const code_header *code = weight->code;
    const int64_t share = args->work.share, shares = args->work.shares;
    const int64_t tiles = (args->pixels + LANES - 1) / LANES, chunks = code_chunks(weight->rows);
    const int64_t width = weight->cols < weight->slab ? weight->cols : weight->slab;
    if (tiles == 0 || chunks == 0)
        return;
    const int by_tiles = tiles >= shares;
    const int64_t first_tile = by_tiles ? tiles * share / shares : 0;
    const int64_t end_tile = by_tiles ? tiles * (share + 1) / shares : tiles;
    const int64_t first = by_tiles ? 0 : chunks * share / shares,
                  end = by_tiles ? chunks : chunks * (share + 1) / shares;
    const int64_t fitting = code_x_bytes / (LANES * (int64_t)sizeof(float) * (width ? width : 1));
    const int64_t most = fitting < 1 ? 1 : fitting > code_tiles ? code_tiles : fitting;
    const int plain = args->type == COPPICE_F32 && args->activation == COPPICE_CLAMP_ONLY;
    float *room = aligned(args->work.scratch);
    float *sums = aligned(room + width * COPPICE_PANEL_PIXELS + COPPICE_PANEL_SLACK);
    const int64_t whole = plain ? args->pixels / LANES : 0; /* tiles that y can hold itself */
    for (int64_t tile = first_tile, count; tile < end_tile; tile += count) {
        const int64_t limit = tile < whole && whole < end_tile ? whole : end_tile;
        count = (limit - tile) / ((limit - tile + most - 1) / most); /* groups alike, not a small one at the end */
        const int64_t left = args->pixels - (tile + count) * LANES;
        pass p = {.args = args, .in_y = tile < whole};
        p.part = (panel){.first = tile * LANES, .vectors = (int)count, .tail = left < 0 ? (int)(LANES + left) : 0};
        p.sums = p.in_y ? (float *)args->y + tile * LANES : sums;
        p.stride = p.in_y ? args->y_stride : count * LANES;
        run_group(&p, code, tile, (int)count, first, end, room);
        p.first_band = code_first_row(weight->rows, first);
        p.end_band = code_first_row(weight->rows, end);
        if (!p.in_y)
            finish(args, NULL, p.first_band, p.end_band, p.part, p.sums, p.stride);
    }
}

void coppice_matmul_avx512(const coppice_matmul_args *args) {
    const int32_t layout = args->weight.layout;
    if (layout == COPPICE_SPARSE && args->weight.code && !is_one_pixel(args))
        run_code(args);
    else if (layout == COPPICE_BITMASK && is_few_packed(args))
        repeat_few(args, matmul_bitmask);
    else if (layout == COPPICE_N_OF_M && is_few_packed(args))
        repeat_few(args, matmul_n_of_m);
    else if (layout == COPPICE_SELL && is_few_packed(args))
        repeat_few(args, matmul_sell_gather);
    else
        matmul_vectors(args);
}
