#include "group_conv.h"
#include "lanes.h"

#include <stdlib.h>

/* A map lies in its frame: rows of width + 2 with zeros around. Shifting the whole frame by a tap's place then gives
   that tap's input for all pixels at once; what falls on the two columns between rows is computed and thrown away. */

#define TAPS 9
#define SPAN 5   /* registers of neighbouring pixels that are computed together */
#define OUTPUTS 4 /* channels that are computed together */
#define PAIR 2

typedef struct {
    long stride, pixels, size; /* of a frame: its row, the pixels that are computed, all of it with room to overrun */
} frame;

INLINE frame frame_of(const conv_shape *s)
{
    long stride = s->width + 2, pixels = (s->height - 1) * stride + s->width;
    return (frame){stride, pixels, (s->height + 2) * stride + SPAN * LANES};
}

/* `channels` maps into their frames, whose borders are zero already; `inset`: where the first pixel goes. */
INLINE void into_frames(const conv_shape *s, frame f, const float *maps, long channels, long inset, float *frames)
{
    for (long c = 0; c < channels; c++)
        for (long i = 0; i < s->height; i++)
            memcpy(frames + c * f.size + i * f.stride + inset, maps + (c * s->height + i) * s->width,
                   s->width * sizeof *maps);
}

/* SPAN registers of pixels from `from` on, of `count` (a constant) output channels. */
INLINE void filtered(frame f, const float *frames, long in, const float *filters, long from, int count,
                     lanes sums[OUTPUTS][SPAN])
{
    for (int o = 0; o < count; o++)
        for (int v = 0; v < SPAN; v++)
            sums[o][v] = splat(0);
    for (long i = 0; i < in; i++)
        for (int t = 0; t < TAPS; t++) {
            const float *at = frames + i * f.size + from + (t / 3) * f.stride + t % 3;
            lanes x[SPAN];
            for (int v = 0; v < SPAN; v++)
                x[v] = load(at + v * LANES);
            for (int o = 0; o < count; o++) {
                lanes weight = splat(filters[(o * in + i) * TAPS + t]);
                for (int v = 0; v < SPAN; v++)
                    sums[o][v] += weight * x[v];
            }
        }
}

/* All of one group's maps of one image: out maps from the frames of the in maps. `row`: a frame to work in. */
INLINE void convolve(const conv_shape *s, frame f, const float *frames, long in, long out, const float *filters,
                     float *row, float *maps)
{
    lanes sums[OUTPUTS][SPAN];
    for (long o = 0; o < out;) {
        int count = out - o >= OUTPUTS ? OUTPUTS : 1;
        for (long from = 0; from < f.pixels; from += SPAN * LANES) {
            if (count == OUTPUTS)
                filtered(f, frames, in, filters + o * in * TAPS, from, OUTPUTS, sums);
            else
                filtered(f, frames, in, filters + o * in * TAPS, from, 1, sums);
            for (int k = 0; k < count; k++)
                for (int v = 0; v < SPAN; v++)
                    store(row + k * f.size + from + v * LANES, sums[k][v]);
        }
        for (int k = 0; k < count; k++, o++)
            for (long i = 0; i < s->height; i++)
                memcpy(maps + (o * s->height + i) * s->width, row + k * f.size + i * f.stride,
                       s->width * sizeof *maps);
    }
}

FOR_EVERY_PROCESSOR
int conv_forward(const conv_shape *s, const float *x, const float *filters, float *y)
{
    frame f = frame_of(s);
    float *frames = calloc((s->in + OUTPUTS) * f.size, sizeof *frames);
    if (!frames)
        return 0;
    long pixels = s->height * s->width;
    for (long n = 0; n < s->images; n++)
        for (long g = 0; g < s->groups; g++) {
            long at = n * s->groups + g;
            into_frames(s, f, x + at * s->in * pixels, s->in, f.stride + 1, frames);
            convolve(s, f, frames, s->in, s->out, filters + g * s->out * s->in * TAPS, frames + s->in * f.size,
                     y + at * s->out * pixels);
        }
    free(frames);
    return 1;
}

/* The filters of the transposed convolution: in and out change places, taps turn around. */
INLINE void turned(const conv_shape *s, const float *filters, float *to)
{
    for (long o = 0; o < s->out; o++)
        for (long i = 0; i < s->in; i++)
            for (int t = 0; t < TAPS; t++)
                to[(i * s->out + o) * TAPS + t] = filters[(o * s->in + i) * TAPS + TAPS - 1 - t];
}

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_AVX512 1
/* Keeps a value in a register; the compiler would rather read it from memory again for every use. */
#define HOLD(value) __asm__("" : "+v"(value))
#else
#define HOLD(value) (void)(value)
#endif

/* One group's dfilters of `count` (a constant) outputs and one input, over all images.
   wide (a constant): whether `lanes` is one register here. */
INLINE void correlated(const conv_shape *s, frame f, const float *x_frames, const float *dy_frames, int count,
                       int wide, float *dfilters)
{
    lanes sums[PAIR][TAPS];
    for (int o = 0; o < count; o++)
        for (int t = 0; t < TAPS; t++)
            sums[o][t] = splat(0);
    for (long n = 0; n < s->images; n++) {
        const float *x = x_frames + n * s->in * f.size, *dy = dy_frames + n * s->out * f.size;
        for (long p = 0; p < f.pixels; p += LANES) {
            lanes g[PAIR];
            for (int o = 0; o < count; o++)
                g[o] = load(dy + o * f.size + p);
#pragma GCC unroll 9
            for (int t = 0; t < TAPS; t++) {
                lanes v = load(x + p + (t / 3) * f.stride + t % 3);
                if (wide)
                    HOLD(v);
                for (int o = 0; o < count; o++)
                    sums[o][t] += g[o] * v;
            }
        }
    }
    for (int o = 0; o < count; o++)
        for (int t = 0; t < TAPS; t++)
            dfilters[o * s->in * TAPS + t] = total(sums[o][t]);
}

INLINE void filter_gradients(const conv_shape *s, frame f, const float *x_frames, const float *dy_frames, int wide,
                             float *dfilters)
{
    for (long i = 0; i < s->in; i++) {
        long o = 0;
        for (; o + PAIR <= s->out; o += PAIR)
            correlated(s, f, x_frames + i * f.size, dy_frames + o * f.size, PAIR, wide,
                       dfilters + (o * s->in + i) * TAPS);
        for (; o < s->out; o++)
            correlated(s, f, x_frames + i * f.size, dy_frames + o * f.size, 1, wide,
                       dfilters + (o * s->in + i) * TAPS);
    }
}

#ifdef HAS_AVX512
__attribute__((target("avx512f"))) static void
wide_filter_gradients(const conv_shape *s, frame f, const float *x_frames, const float *dy_frames, float *dfilters)
{
    filter_gradients(s, f, x_frames, dy_frames, 1, dfilters);
}
#endif

FOR_EVERY_PROCESSOR
int conv_backward(const conv_shape *s, const float *dy, const float *x, const float *filters, float *dx,
                  float *dfilters)
{
    frame f = frame_of(s);
    long pixels = s->height * s->width, filter_size = s->out * s->in * TAPS;
    /* One group of all images: x and dy in frames, dy once more as an input, filters turned, a place to work in. */
    long most = s->images * (s->in + s->out) + s->out + OUTPUTS;
    float *frames = calloc(most * f.size + filter_size, sizeof *frames);
    if (!frames)
        return 0;
    float *x_frames = frames, *dy_frames = x_frames + s->images * s->in * f.size;
    float *inputs = dy_frames + s->images * s->out * f.size, *row = inputs + s->out * f.size;
    float *transposed = row + OUTPUTS * f.size;
    for (long g = 0; g < s->groups; g++) {
        if (dx)
            turned(s, filters + g * filter_size, transposed);
        for (long n = 0; n < s->images; n++) {
            long at = n * s->groups + g;
            const float *own = dy + at * s->out * pixels;
            into_frames(s, f, x + at * s->in * pixels, s->in, f.stride + 1, x_frames + n * s->in * f.size);
            into_frames(s, f, own, s->out, 0, dy_frames + n * s->out * f.size);
            if (!dx)
                continue;
            into_frames(s, f, own, s->out, f.stride + 1, inputs);
            convolve(s, f, inputs, s->out, s->in, transposed, row, dx + at * s->in * pixels);
        }
#ifdef HAS_AVX512
        if (__builtin_cpu_supports("avx512f")) {
            wide_filter_gradients(s, f, x_frames, dy_frames, dfilters + g * filter_size);
            continue;
        }
#endif
        filter_gradients(s, f, x_frames, dy_frames, 0, dfilters + g * filter_size);
    }
    free(frames);
    return 1;
}
