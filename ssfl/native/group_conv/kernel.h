/* A map is stored in a frame: rows of width + 2 with zeros around it. Shifting the whole frame by the offset of a filter
   tap then gives that tap's input for all pixels; the two padding columns between rows are computed and discarded. */
#ifndef SSFL_GROUP_CONV_KERNEL_H
#define SSFL_GROUP_CONV_KERNEL_H

#include "../isa/simd.h"
#include "group_conv.h"

#define TAPS 9
/* Sums that are kept in registers: OUTPUTS channels x SPAN registers of adjacent pixels; for the filters' gradients,
   PRODUCTS output channels x TAP_ROWS rows of taps. */
#if REGISTERS == 32
#define OUTPUTS 4
#define SPAN 5
#define PRODUCTS 2
#define TAP_ROWS 3
#else
#define OUTPUTS 4
#define SPAN 3
#define PRODUCTS 4
#define TAP_ROWS 1
#endif

typedef struct {
    long stride, pixels, size; /* of a frame: its row, the computed pixels, all with extra space for whole registers */
    long inset;                /* position of the first pixel of a map */
} frame;

INLINE frame frame_of(const conv_shape *s)
{
    long stride = s->width + 2, pixels = (s->height - 1) * stride + s->width;
    return (frame){stride, pixels, (s->height + 2) * stride + SPAN * LANES, stride + 1};
}

/* Rows are short: a call of memcpy would cost as much as the copy itself. */
INLINE void copy_row(float *to, const float *from, long width)
{
    long i = 0;
    for (; i + 4 <= width; i += 4)
        memcpy(to + i, from + i, 4 * sizeof *to);
    for (; i < width; i++)
        to[i] = from[i];
}

/* Copies `channels` maps into their frames, whose borders are already zero. */
INLINE void into_frames(const conv_shape *s, frame f, const float *maps, long channels, float *frames)
{
    for (long c = 0; c < channels; c++)
        for (long i = 0; i < s->height; i++)
            copy_row(frames + c * f.size + i * f.stride + f.inset, maps + (c * s->height + i) * s->width, s->width);
}

/* Computes `span` registers of pixels of `count` output channels (both constants); rows are f.size apart. */
INLINE void convolve_span(frame f, const float *frames, long in, const float *filters, int span, int count, float *row)
{
    lanes sums[OUTPUTS][SPAN];
    for (int o = 0; o < count; o++)
        for (int v = 0; v < span; v++)
            sums[o][v] = splat(0);
    for (long i = 0; i < in; i++)
        for (int t = 0; t < TAPS; t++) {
            const float *at = frames + i * f.size + (t / 3) * f.stride + t % 3;
            lanes x[SPAN];
            for (int v = 0; v < span; v++)
                x[v] = load(at + v * LANES);
            for (int o = 0; o < count; o++) {
                lanes weight = splat(filters[(o * in + i) * TAPS + t]);
                for (int v = 0; v < span; v++)
                    sums[o][v] += weight * x[v];
            }
        }
    for (int o = 0; o < count; o++)
        for (int v = 0; v < span; v++)
            store(row + o * f.size + v * LANES, sums[o][v]);
}

/* Computes all pixels of `count` (a constant) output channels. */
INLINE void convolve_outputs(frame f, const float *frames, long in, const float *filters, int count, float *row)
{
    long from = 0, last = (f.pixels + LANES - 1) / LANES * LANES;
    for (; from + SPAN * LANES <= last; from += SPAN * LANES)
        convolve_span(f, frames + from, in, filters, SPAN, count, row + from);
    switch ((last - from) / LANES) {
#if SPAN > 3
    case 4: convolve_span(f, frames + from, in, filters, 4, count, row + from); break;
    case 3: convolve_span(f, frames + from, in, filters, 3, count, row + from); break;
#endif
    case 2: convolve_span(f, frames + from, in, filters, 2, count, row + from); break;
    case 1: convolve_span(f, frames + from, in, filters, 1, count, row + from); break;
    default: break;
    }
}

/* Computes one group's output maps of one image from the frames of its input maps. `row`: scratch of OUTPUTS frames. */
static void convolve_group(const conv_shape *s, frame f, const float *frames, long in, long out, const float *filters,
                           float *row, float *maps)
{
    for (long o = 0; o < out;) {
        int count = out - o >= OUTPUTS ? OUTPUTS : 1;
        if (count == OUTPUTS)
            convolve_outputs(f, frames, in, filters + o * in * TAPS, OUTPUTS, row);
        else
            convolve_outputs(f, frames, in, filters + o * in * TAPS, 1, row);
        for (int k = 0; k < count; k++, o++)
            for (long i = 0; i < s->height; i++)
                copy_row(maps + (o * s->height + i) * s->width, row + k * f.size + i * f.stride, s->width);
    }
}

static int conv_forward(const conv_shape *s, const float *x, const float *filters, float *y)
{
    frame f = frame_of(s);
    float *frames = calloc((s->in + OUTPUTS) * f.size, sizeof *frames);
    if (!frames)
        return 0;
    long pixels = s->height * s->width;
    for (long n = 0; n < s->images; n++)
        for (long g = 0; g < s->groups; g++) {
            long at = n * s->groups + g;
            into_frames(s, f, x + at * s->in * pixels, s->in, frames);
            convolve_group(s, f, frames, s->in, s->out, filters + g * s->out * s->in * TAPS, frames + s->in * f.size,
                           y + at * s->out * pixels);
        }
    free(frames);
    return 1;
}

/* The filters of the transposed convolution: in and out are exchanged, taps are reversed. */
INLINE void transposed_filters(const conv_shape *s, const float *filters, float *to)
{
    for (long o = 0; o < s->out; o++)
        for (long i = 0; i < s->in; i++)
            for (int t = 0; t < TAPS; t++)
                to[(i * s->out + o) * TAPS + t] = filters[(o * s->in + i) * TAPS + TAPS - 1 - t];
}

/* dfilters over all images, for `count` (a constant) outputs, one input and `rows` (a constant) rows of taps. */
INLINE void weight_gradient_rows(const conv_shape *s, frame f, const float *x_frames, const float *dy_frames, int count,
                                 int rows, float *dfilters)
{
    lanes sums[PRODUCTS][3 * TAP_ROWS];
    for (int o = 0; o < count; o++)
        for (int t = 0; t < 3 * rows; t++)
            sums[o][t] = splat(0);
    for (long n = 0; n < s->images; n++) {
        const float *x = x_frames + n * s->in * f.size, *dy = dy_frames + n * s->out * f.size + f.inset;
        for (long p = 0; p < f.pixels; p += LANES) {
            lanes g[PRODUCTS];
            for (int o = 0; o < count; o++)
                g[o] = load(dy + o * f.size + p);
#pragma GCC unroll 9
            for (int t = 0; t < 3 * rows; t++) {
                lanes v = load(x + p + (t / 3) * f.stride + t % 3);
                HOLD(v);
                for (int o = 0; o < count; o++)
                    sums[o][t] += g[o] * v;
            }
        }
    }
    for (int o = 0; o < count; o++)
        for (int t = 0; t < 3 * rows; t++)
            dfilters[o * s->in * TAPS + t] = total(sums[o][t]);
}

/* One group's dfilters. */
static void weight_gradient_group(const conv_shape *s, frame f, const float *x_frames, const float *dy_frames,
                                  float *dfilters)
{
    for (long i = 0; i < s->in; i++)
        for (long o = 0; o < s->out;) {
            const float *x = x_frames + i * f.size, *dy = dy_frames + o * f.size;
            float *to = dfilters + (o * s->in + i) * TAPS;
            int count = s->out - o >= PRODUCTS ? PRODUCTS : 1;
            for (int r = 0; r < 3; r += TAP_ROWS)
                if (count == PRODUCTS)
                    weight_gradient_rows(s, f, x + r * f.stride, dy, PRODUCTS, TAP_ROWS, to + 3 * r);
                else
                    weight_gradient_rows(s, f, x + r * f.stride, dy, 1, TAP_ROWS, to + 3 * r);
            o += count;
        }
}

static int conv_backward(const conv_shape *s, const float *dy, const float *x, const float *filters, float *dx,
                         float *dfilters)
{
    frame f = frame_of(s);
    long pixels = s->height * s->width, filter_size = s->out * s->in * TAPS;
    /* For one group of all images: x and dy in frames, OUTPUTS frames of scratch, transposed filters. */
    long frames = s->images * (s->in + s->out) + OUTPUTS;
    float *x_frames = calloc(frames * f.size + filter_size, sizeof *x_frames);
    if (!x_frames)
        return 0;
    float *dy_frames = x_frames + s->images * s->in * f.size, *row = dy_frames + s->images * s->out * f.size;
    float *transposed = row + OUTPUTS * f.size;
    for (long g = 0; g < s->groups; g++) {
        if (dx)
            transposed_filters(s, filters + g * filter_size, transposed);
        for (long n = 0; n < s->images; n++) {
            long at = n * s->groups + g;
            float *own = dy_frames + n * s->out * f.size;
            into_frames(s, f, x + at * s->in * pixels, s->in, x_frames + n * s->in * f.size);
            into_frames(s, f, dy + at * s->out * pixels, s->out, own);
            if (dx)
                convolve_group(s, f, own, s->out, s->in, transposed, row, dx + at * s->in * pixels);
        }
        weight_gradient_group(s, f, x_frames, dy_frames, dfilters + g * filter_size);
    }
    free(x_frames);
    return 1;
}

#endif
