/* depthwise of the usual kernels with the rows of x in registers.
 *
 * One register or two hold columns of a row of x that stand side by side, zeros where they are outside of it. What a
 * tap meets in one window after the other is a permutation of them, so each element of x is read once and nothing is
 * laid out in scratch. They march down a strip of y as wide as a register; or, where images are so narrow that a
 * register holds a whole row, down one or more channels at once, side by side with zeros between that serve the one to
 * the left as well as the one to the right. */
#ifndef COPPICE_X86_DEPTHWISE_ROWS_H
#define COPPICE_X86_DEPTHWISE_ROWS_H

#include "../vector/activation.h"

enum { widest_kernel = 5, most_channels = 2 * LANES };

/* What is in the registers: a strip of a row, a whole row, or rows of several channels. */
enum { STRIP, ROW, ROWS };

/* Lanes of a register, and the element that would be in the first of them, in row 0. */
typedef struct piece {
    const char *at;
    __mmask16 lanes;
} piece;

/* A strip of one channel, or channels side by side. */
typedef struct strips {
    const coppice_depthwise_args *args;
    int64_t first, end;             /* rows of y */
    int64_t begin, columns;         /* of y */
    int64_t channel[most_channels]; /* of y */
    const char *x[most_channels];   /* of these channels */
    int channels, pitch;            /* columns of x from one to the next; 0: a strip */
} strips;

static int is_usual(const coppice_window *w) {
    return w->kernel_x == w->kernel_y && (w->kernel_x == 3 || w->kernel_x == 5) && w->stride_x == w->stride_y &&
           w->stride_x <= 2 && w->dilation_x == 1 && w->dilation_y == 1;
}

/* The least part of a register that holds a whole row of x, with zeros for what is outside of it; 0: there is none. */
static int pitch_of(const coppice_window *w) {
    const int64_t after = (w->out_width - 1) * w->stride_x + w->kernel_x - w->pad_x - w->width; /* columns past x */
    const int64_t apart = w->width + (w->pad_x > after ? w->pad_x : after), covered = w->out_width * w->stride_x;
    const int64_t least = apart > covered ? apart : covered;
    int64_t pitch = 0;
    for (int64_t next = LANES; next >= least && next % w->stride_x == 0; next /= 2)
        pitch = next;
    return (int)pitch;
}

static inline __mmask16 lanes_within(int64_t first, int64_t end) {
    const int64_t begin = first < 0 ? 0 : first, stop = end < LANES ? end : LANES;
    return begin < stop ? lanes_between((int)begin, (int)stop) : 0;
}

/* Of x: those of the first register, then those of the second. Returns how many each has. */
ALWAYS_INLINE int lay_out_x(const int64_t size, const int stride, const int held, const strips *s, piece *pieces) {
    const coppice_window *w = &s->args->window;
    if (held == STRIP) {
        for (int number = 0; number < 2; number++) {
            const int64_t before = w->pad_x - s->begin * stride - number * LANES; /* lanes left of column 0 */
            pieces[number] = (piece){s->x[0] - before * size, lanes_within(before, before + w->width)};
        }
        return 1;
    }
    const int channels = held == ROW ? 1 : s->channels;
    for (int i = 0; i < channels; i++) {
        const int64_t lane = i * s->pitch % LANES;
        pieces[i] = (piece){s->x[i] - lane * size, lanes_within(lane, lane + w->width)};
    }
    return held == ROW ? 1 : channels / stride;
}

/* Of y. Returns how many there are. */
ALWAYS_INLINE int lay_out_y(const int64_t size, const int stride, const int held, const strips *s, piece *pieces) {
    const int channels = held == ROWS ? s->channels : 1;
    for (int i = 0; i < channels; i++) {
        const int64_t lane = i * s->pitch / stride;
        const int64_t place = s->channel[i] * s->args->y_stride + s->begin - lane;
        pieces[i] = (piece){(const char *)s->args->y + place * size, lanes_within(lane, lane + s->columns)};
    }
    return channels;
}

ALWAYS_INLINE vector load_piece(const int type, const piece *own, int64_t offset) {
    if (type == COPPICE_F32)
        return _mm512_maskz_loadu_ps(own->lanes, own->at + offset);
    const __m256i halves = _mm256_maskz_loadu_epi16(own->lanes, own->at + offset);
    return type == COPPICE_F16 ? from_f16(halves) : from_bf16(halves);
}

/* A register from its pieces, `offset` bytes on. */
ALWAYS_INLINE vector load_pieces(const int type, const piece *pieces, int count, int64_t offset) {
    vector held = load_piece(type, pieces, offset);
    for (int i = 1; i < count; i++) {
        const vector more = load_piece(type, pieces + i, offset);
        held = _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(held), _mm512_castps_si512(more)));
    }
    return held;
}

ALWAYS_INLINE void store_pieces(const int type, const piece *pieces, int count, int64_t offset, vector value) {
    for (int i = 0; i < count; i++) {
        char *to = (char *)(uintptr_t)pieces[i].at + offset;
        if (type == COPPICE_F32)
            _mm512_mask_storeu_ps(to, pieces[i].lanes, value);
        else
            _mm256_mask_storeu_epi16(to, pieces[i].lanes, type == COPPICE_F16 ? to_f16(value) : to_bf16(value));
    }
}

/* One value of each channel, `step` apart, in the lanes of its part of y. */
ALWAYS_INLINE vector of_channels(const int stride, const int held, const strips *s, const float *values, int64_t step) {
    vector all = broadcast(values[s->channel[0] * step]);
    for (int i = 1; i < s->channels && held == ROWS; i++)
        all = first_lanes(i * s->pitch / stride, all, broadcast(values[s->channel[i] * step]));
    return all;
}

ALWAYS_INLINE vector picked(const int registers, const vector *x, __m512i places) {
    return registers == 1 ? _mm512_permutexvar_ps(places, x[0]) : _mm512_permutex2var_ps(x[0], places, x[1]);
}

/* sum[j] belongs to the row of y that began j windows above. What a row of x adds to it is summed up by itself, so that
 * a sum waits for one addition a row. The first four arguments are constants wherever this is called, the fifth too
 * where it is worth it. */
ALWAYS_INLINE void march_rows(const int kernel, const int stride, const int held, const int type, const int activation,
                              const strips *s) {
    const coppice_depthwise_args *args = s->args;
    const coppice_window *w = &args->window;
    const int64_t size = type == COPPICE_F32 ? sizeof(float) : sizeof(uint16_t);
    const int64_t x_step = w->row_stride * size, y_step = w->out_width * size;
    const int64_t first = s->first, end = s->end, height = w->height;
    const int live = (kernel + stride - 1) / stride, registers = held == STRIP ? 2 : stride;
    const vector lower = broadcast(args->lower), upper = broadcast(args->upper);
    const vector bias = args->bias ? of_channels(stride, held, s, args->bias, 1) : zero();
    vector weight[widest_kernel][widest_kernel], sum[widest_kernel];
    __m512i places[widest_kernel]; /* modulo the lanes of all registers */
    for (int kx = 0; kx < kernel; kx++) {
        const int behind = held == STRIP ? kx : kx - (int)w->pad_x;
        places[kx] = _mm512_add_epi32(series(0, stride), _mm512_set1_epi32(behind));
        for (int ky = 0; ky < kernel; ky++)
            weight[ky][kx] = of_channels(stride, held, s, args->weight + ky * kernel + kx, kernel * kernel);
    }
    piece from[most_channels], to[most_channels];
    const int each = lay_out_x(size, stride, held, s, from), channels = lay_out_y(size, stride, held, s, to);
    for (int j = 0; j < live; j++)
        sum[j] = bias;
    int64_t y = first * stride - w->pad_y; /* of x */
    for (int64_t row = first + 1 - live; row < end; row++) {
        for (int i = 0; i < stride; i++, y++) {
            vector x[2], met[widest_kernel];
            for (int number = 0; number < registers; number++)
                x[number] = y < 0 || y >= height ? zero() : load_pieces(type, from + number * each, each, y * x_step);
            for (int kx = 0; kx < kernel; kx++)
                met[kx] = held == STRIP && stride == 1 && kx == 0 ? x[0] : picked(registers, x, places[kx]);
            for (int j = 0; j < live && i + j * stride < kernel; j++) {
                vector part = multiply(weight[i + j * stride][0], met[0]);
                for (int kx = 1; kx < kernel; kx++)
                    part = multiply_add(weight[i + j * stride][kx], met[kx], part);
                sum[j] = add(sum[j], part);
            }
        }
        if (row >= first)
            store_pieces(type, to, channels, row * y_step, finished(activation, lower, upper, sum[live - 1]));
        for (int j = live - 1; j > 0; j--)
            sum[j] = sum[j - 1];
        sum[0] = bias;
    }
}

ALWAYS_INLINE void march_as(const int kernel, const int stride, const int held, const strips *s) {
    const int activation = s->args->activation;
    if (activation == COPPICE_CLAMP_ONLY)
        EACH_TYPE(s->args->type, march_rows(kernel, stride, held, type, COPPICE_CLAMP_ONLY, s))
    else
        march_rows(kernel, stride, held, s->args->type, activation, s);
}

#define MARCH(kernel, stride)                                                                                          \
    static void march_##kernel##_##stride(const strips *s) {                                                           \
        if (s->pitch == 0)                                                                                             \
            march_as(kernel, stride, STRIP, s);                                                                        \
        else if (stride == 1 && s->channels == 1)                                                                      \
            march_as(kernel, stride, ROW, s);                                                                          \
        else                                                                                                           \
            march_as(kernel, stride, ROWS, s);                                                                         \
    }
MARCH(3, 1)
MARCH(3, 2)
MARCH(5, 1)
MARCH(5, 2)
#undef MARCH

static void march_strips(const strips *s) {
    static void (*const marches[2][2])(const strips *) = {{march_3_1, march_3_2}, {march_5_1, march_5_2}};
    marches[s->args->window.kernel_x == 5][s->args->window.stride_x == 2](s);
}

/* For usual windows. */
static void depthwise_rows(const coppice_depthwise_args *args) {
    const coppice_window *w = &args->window;
    if (args->rows == 0 || w->out_height == 0 || w->out_width == 0)
        return;
    const coppice_part part = coppice_part_of(&args->work, args->rows, w->out_height);
    const int64_t reach = (2 * LANES - w->kernel_x) / w->stride_x + 1, widest = reach < LANES ? reach : LANES;
    strips s = {.args = args, .first = part.line, .end = part.end_line, .pitch = pitch_of(w)};
    s.channels = s.pitch ? (int)(LANES * w->stride_x) / s.pitch : 1;
    for (int64_t row = part.row; row < part.end_row; row += s.channels) {
        for (int i = 0; i < s.channels; i++) { /* where there are too few, the last one is made again */
            s.channel[i] = row + i < part.end_row ? row + i : part.end_row - 1;
            const int64_t source = args->sources ? args->sources[s.channel[i]] : s.channel[i];
            s.x[i] = (const char *)args->x + (size_t)(source * w->channel_stride) * coppice_type_size(args->type);
        }
        for (s.begin = 0; s.begin < w->out_width; s.begin += s.columns) {
            const int64_t left = w->out_width - s.begin;
            s.columns = s.pitch || left < widest ? left : widest;
            march_strips(&s);
        }
    }
}

#endif
