/* matmul for few pixels and bands of several rows: the lanes of a vector are rows, not pixels.
 *
 * A vector holds the values of one entry (LANES rows), of several entries (bands of fewer rows, `parts` of them), or of
 * a part of one entry (bands of more rows). It is multiplied by x of the entries' columns, each broadcast into its
 * lanes, so a value is loaded once, side by side with its neighbours, and narrow values are widened in registers on the
 * way. */
#ifndef COPPICE_VECTOR_MATVEC_H
#define COPPICE_VECTOR_MATVEC_H

#include "few.h"

enum { few_chains = 4 };

/* Sums of one band of `height` rows over one slab, added to sums[pixels][height]. */
ALWAYS_INLINE void add_band(const int height, const int pixels, const int type, const coppice_weight *weight,
                            int64_t slab, int64_t band, const float *x, float *sums) {
    enum { most_vectors = LANES < 16 ? 16 / LANES : 1 };
    const int parts = height < LANES ? LANES / height : 1, vectors = height > LANES ? height / LANES : 1;
    const int chains = pixels * vectors >= few_chains ? 1 : few_chains;
    const size_t first = coppice_first_entry(weight, slab, band), count = coppice_entries(weight, slab, band);
    const uint16_t *columns = weight->layout == COPPICE_SPARSE ? weight->columns + first : NULL;
    const float *from = x + slab * weight->slab * pixels;
    vector sum[few_chains][most_few][most_vectors];
    for (int chain = 0; chain < chains; chain++)
        for (int pixel = 0; pixel < pixels; pixel++)
            for (int v = 0; v < vectors; v++)
                sum[chain][pixel][v] = zero();
    for (size_t entry = 0; entry < count; entry += (size_t)(parts * chains))
        for (int chain = 0; chain < chains; chain++) {
            const size_t at = entry + (size_t)(chain * parts), left = at < count ? count - at : 0;
            const int held = left < (size_t)parts ? (int)left : parts;
            if (held == 0)
                break;
            vector value[most_vectors];
            for (int v = 0; v < vectors; v++)
                value[v] = values_at(type, weight->values, (first + at) * (size_t)height + (size_t)(v * LANES),
                                     vectors > 1 ? LANES : held * height);
            for (int pixel = 0; pixel < pixels; pixel++) {
                vector spread = zero();
                for (int part = 0; part < held; part++) {
                    const size_t column = columns ? columns[at + (size_t)part] : at + (size_t)part;
                    spread = broadcast_into(spread, part, parts, from + column * (size_t)pixels + pixel);
                }
                for (int v = 0; v < vectors; v++)
                    sum[chain][pixel][v] = multiply_add(value[v], spread, sum[chain][pixel][v]);
            }
        }
    for (int pixel = 0; pixel < pixels; pixel++)
        for (int v = 0; v < vectors; v++) {
            float lanes_of_all[LANES];
            vector total = sum[0][pixel][v];
            for (int chain = 1; chain < chains; chain++)
                total = add(total, sum[chain][pixel][v]);
            store(lanes_of_all, total);
            for (int lane = 0; lane < LANES; lane++)
                sums[pixel * height + (v * LANES + lane) % height] += lanes_of_all[lane];
        }
}

static void add_any_band(const coppice_matmul_args *args, int64_t slab, int64_t band, const float *x, float *sums) {
    const coppice_weight *weight = &args->weight;
#define CASE(height, pixels)                                                                                           \
    case height * 8 + pixels:                                                                                          \
        EACH_VALUE_TYPE(weight->type, add_band(height, pixels, type, weight, slab, band, x, sums))                     \
        break;
    switch (weight->height * 8 + args->pixels) { FEW_CASES }
#undef CASE
}

static void matvec(const coppice_matmul_args *args, float *room) {
    const coppice_weight *weight = &args->weight;
    const int64_t bands = coppice_bands(weight), slabs = coppice_slabs(weight);
    const float *x = narrow_x(args, room);
    const int64_t end = bands * (args->work.share + 1) / args->work.shares;
    for (int64_t band = bands * args->work.share / args->work.shares; band < end; band++) {
        float sums[most_few * 16] = {0};
        for (int64_t slab = 0; slab < slabs; slab++)
            add_any_band(args, slab, band, x, sums);
        finish_band(args, band, sums);
    }
}

#endif
