/* matmul of COPPICE_N_OF_M for few pixels, AVX-512: lanes are rows. Of sixteen columns of x each lane picks its own by
 * the position of its entry: a permutation looks at the lowest four bits of an index alone, so a shift brings the next
 * position of a word to its place. */
#ifndef COPPICE_X86_N_OF_M_H
#define COPPICE_X86_N_OF_M_H

#include "few.h"

enum { n_of_m_chains = 4, n_of_m_block = 64 /* rows whose y is written at once */ };

/* sums[pixels][n_of_m_block] of one band; `at` and `within` follow the sixteen columns and the entries in them. */
ALWAYS_INLINE void add_n_of_m_band(const int type, const int pixels, const coppice_weight *weight, int64_t band,
                                   const float *x, float *sums) {
    const int64_t count = coppice_row_entries(weight), words = coppice_position_words(weight);
    const int64_t width = coppice_few_width(weight);
    const int chunk = coppice_chunk_entries(weight);
    const uint32_t *positions = weight->positions + band * words * band_lanes;
    const size_t first = (size_t)(band * count * band_lanes);
    const float *at = x;
    int within = 0;
    vector sum[n_of_m_chains][most_few_pixels];
    for (int chain = 0; chain < n_of_m_chains; chain++)
        for (int pixel = 0; pixel < pixels; pixel++)
            sum[chain][pixel] = zero();
    for (int64_t entry = 0; entry < count; entry += word_positions) {
        const __m512i word = _mm512_loadu_si512(positions + entry / word_positions * band_lanes);
        const int64_t left = count - entry;
        COPPICE_UNROLL
        for (int step = 0; step < word_positions; step++) {
            if (left <= step)
                break;
            const __m512i position = _mm512_srli_epi32(word, 4u * (unsigned)step);
            const vector value = values_at(type, weight->values, first + (size_t)(entry + step) * band_lanes, LANES);
            for (int pixel = 0; pixel < pixels; pixel++) {
                const vector picked = _mm512_permutexvar_ps(position, load(at + pixel * width));
                sum[step % n_of_m_chains][pixel] = multiply_add(value, picked, sum[step % n_of_m_chains][pixel]);
            }
            within = within + 1 < chunk ? within + 1 : 0;
            at += within ? 0 : chunk_columns;
        }
    }
    for (int pixel = 0; pixel < pixels; pixel++)
        store(sums + pixel * n_of_m_block, add(add(sum[0][pixel], sum[1][pixel]), add(sum[2][pixel], sum[3][pixel])));
}

ALWAYS_INLINE void n_of_m_part(const int type, const int pixels, const coppice_matmul_args *args, int64_t first,
                               int64_t end, const float *x) {
    const coppice_weight *weight = &args->weight;
    enum { most = n_of_m_block / band_lanes };
    float sums[most_few_pixels * n_of_m_block];
    for (int64_t band = first, bands; band < end; band += bands) {
        bands = end - band < most ? end - band : most;
        for (int64_t b = 0; b < bands; b++)
            add_n_of_m_band(type, pixels, weight, band + b, x, sums + b * band_lanes);
        const int64_t row = band * band_lanes, left = weight->rows - row;
        finish_few(args, row, left < bands * band_lanes ? left : bands * band_lanes, sums, n_of_m_block);
    }
}

static void matmul_n_of_m(const coppice_matmul_args *args) {
    const int64_t bands = coppice_bands(&args->weight), share = args->work.share, shares = args->work.shares;
    const int64_t first = bands * share / shares, end = bands * (share + 1) / shares;
    const float *x = few_x(args, aligned(args->work.scratch));
#define CALL(type, pixels) n_of_m_part(type, pixels, args, first, end, x)
    FEW_TYPES(CALL)
#undef CALL
}

#endif
