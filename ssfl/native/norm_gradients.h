/* The loops of GroupNorm's backward pass over one image's values. */
#ifndef SSFL_NORM_GRADIENTS_H
#define SSFL_NORM_GRADIENTS_H

#include "group_norm.h"
#include "lanes.h"

/* dz: the gradient of the norm's own output, from that of y: zero where ReLU gave zero. */

/* Per channel, over one map: sums of dz and of dz * (x - mean). */
INLINE void sums_last(long pixels, long channels, int with_relu, const float *dy, const float *x, const float *y,
                      const float *mean, float *plain, float *weighted)
{
    for (long c = 0; c < channels; c += LANES) {
        lanes middle = load(mean + c), a = {0}, b = {0};
        for (long p = 0; p < pixels; p++) {
            long at = p * channels + c;
            lanes dz = load(dy + at), zero = {0};
            if (with_relu)
                dz = blend(load(y + at) > 0, dz, zero);
            a += dz;
            b += dz * (load(x + at) - middle);
        }
        store(plain + c, a);
        store(weighted + c, b);
    }
}

INLINE void sums_first(long pixels, long channels, int with_relu, const float *dy, const float *x, const float *y,
                       const float *mean, float *plain, float *weighted)
{
    for (long c = 0; c < channels; c++) {
        long base = c * pixels, p = 0;
        lanes a = {0}, b = {0};
        float rest = 0, rest_weighted = 0;
        for (; p + LANES <= pixels; p += LANES) {
            lanes dz = load(dy + base + p), zero = {0};
            if (with_relu)
                dz = blend(load(y + base + p) > 0, dz, zero);
            a += dz;
            b += dz * (load(x + base + p) - mean[c]);
        }
        for (; p < pixels; p++) {
            float dz = with_relu && !(y[base + p] > 0) ? 0 : dy[base + p];
            rest += dz;
            rest_weighted += dz * (x[base + p] - mean[c]);
        }
        plain[c] = total(a) + rest;
        weighted[c] = total(b) + rest_weighted;
    }
}

/* Only the largest of a window gets its gradient. */
INLINE void pooled_sums_last(long height, long width, long channels, const float *dy, const float *x,
                             const uint8_t *chosen, const float *mean, float *plain, float *weighted)
{
    long row = width * channels;
    for (long c = 0; c < channels; c += LANES) {
        lanes middle = load(mean + c), a = {0}, b = {0};
        for (long i = 0; i < height / 2; i++)
            for (long j = 0; j < width / 2; j++) {
                long at = (i * (width / 2) + j) * channels + c;
                const float *corner = x + 2 * i * row + 2 * j * channels + c;
                lanes_int which = from_bytes(chosen + at);
                lanes zero = {0}, picked = load(corner);
                picked = blend(which == 1, load(corner + channels), picked);
                picked = blend(which == 2, load(corner + row), picked);
                picked = blend(which == 3, load(corner + row + channels), picked);
                lanes dz = blend(which < 4, load(dy + at), zero);
                a += dz;
                b += dz * (picked - middle);
            }
        store(plain + c, a);
        store(weighted + c, b);
    }
}

/* Of up to 16 windows: the gradients that reach the norm, and where in the map they go. */
INLINE lanes reached(const int32_t *corners, const uint8_t *chosen, const float *dy, long count, int32_t width,
                     int32_t *places)
{
    float some[LANES] = {0};
    uint8_t of[LANES] = {0};
    int32_t starts[LANES] = {0};
    if (count < LANES) {
        memcpy(some, dy, count * sizeof *dy);
        memcpy(of, chosen, count);
        memcpy(starts, corners, count * sizeof *corners);
        dy = some;
        chosen = of;
        corners = starts;
    }
    lanes_int which = from_bytes(chosen), at;
    lanes zero = {0};
    memcpy(&at, corners, sizeof at);
    at += (which & 1) + (((which & 2) >> 1) * width);
    memcpy(places, &at, sizeof at);
    return blend(which < 4, load(dy), zero);
}

INLINE void pooled_sums_first(const norm_shape *s, const int32_t *corners, const float *dy, const float *x,
                              const uint8_t *chosen, const float *mean, float *plain, float *weighted)
{
    long pixels = s->height * s->width, outputs = pixels / 4;
    for (long c = 0; c < s->channels; c++) {
        lanes a = {0}, b = {0};
        for (long from = 0; from < outputs; from += LANES) {
            long count = outputs - from < LANES ? outputs - from : LANES;
            int32_t places[LANES];
            lanes dz = reached(corners + from, chosen + from, dy + from, count, (int32_t)s->width, places);
            a += dz;
            b += dz * (pick(x, places) - mean[c]);
        }
        plain[c] = total(a);
        weighted[c] = total(b);
        x += pixels;
        dy += outputs;
        chosen += outputs;
    }
}

/* dx = own * dz + slope * x + level, per channel; and dz itself for a residual. */
INLINE void gradient_last(long pixels, long channels, int with_relu, const float *dy, const float *x,
                          const float *y, const float *own, const float *slope, const float *level, float *dx,
                          float *dresidual)
{
    for (long p = 0; p < pixels; p++)
        for (long c = 0; c < channels; c += LANES) {
            long at = p * channels + c;
            lanes dz = load(dy + at), zero = {0};
            if (with_relu)
                dz = blend(load(y + at) > 0, dz, zero);
            if (dresidual)
                store(dresidual + at, dz);
            store(dx + at, load(own + c) * dz + (load(slope + c) * load(x + at) + load(level + c)));
        }
}

INLINE void gradient_first(long pixels, long channels, int with_relu, const float *dy, const float *x,
                           const float *y, const float *own, const float *slope, const float *level, float *dx,
                           float *dresidual)
{
    for (long c = 0; c < channels; c++) {
        long base = c * pixels, p = 0;
        for (; p + LANES <= pixels; p += LANES) {
            lanes dz = load(dy + base + p), zero = {0};
            if (with_relu)
                dz = blend(load(y + base + p) > 0, dz, zero);
            if (dresidual)
                store(dresidual + base + p, dz);
            store(dx + base + p, own[c] * dz + (slope[c] * load(x + base + p) + level[c]));
        }
        for (; p < pixels; p++) {
            float dz = with_relu && !(y[base + p] > 0) ? 0 : dy[base + p];
            if (dresidual)
                dresidual[base + p] = dz;
            dx[base + p] = own[c] * dz + (slope[c] * x[base + p] + level[c]);
        }
    }
}

INLINE void pooled_gradient_last(long height, long width, long channels, const float *dy, const float *x,
                                 const uint8_t *chosen, const float *own, const float *slope, const float *level,
                                 float *dx)
{
    long row = width * channels;
    for (long i = 0; i < height / 2; i++)
        for (long j = 0; j < width / 2; j++)
            for (long c = 0; c < channels; c += LANES) {
                long at = (i * (width / 2) + j) * channels + c, corner = 2 * i * row + 2 * j * channels + c;
                lanes_int which = from_bytes(chosen + at);
                lanes zero = {0}, mine = load(own + c) * load(dy + at), a = load(slope + c), b = load(level + c);
                for (int k = 0; k < 4; k++) {
                    long to = corner + (k / 2) * row + (k % 2) * channels;
                    store(dx + to, blend(which == k, mine, zero) + (a * load(x + to) + b));
                }
            }
}

INLINE void pooled_gradient_first(const norm_shape *s, const int32_t *corners, const float *dy, const float *x,
                                  const uint8_t *chosen, const float *own, const float *slope,
                                  const float *level, float *dx)
{
    long pixels = s->height * s->width, outputs = pixels / 4;
    for (long c = 0; c < s->channels; c++) {
        for (long p = 0; p < pixels; p++)
            dx[p] = slope[c] * x[p] + level[c];
        for (long from = 0; from < outputs; from += LANES) {
            long count = outputs - from < LANES ? outputs - from : LANES;
            int32_t places[LANES];
            float mine[LANES];
            store(mine, own[c] * reached(corners + from, chosen + from, dy + from, count, (int32_t)s->width, places));
            for (long o = 0; o < count; o++)
                dx[places[o]] += mine[o];
        }
        x += pixels;
        dx += pixels;
        dy += outputs;
        chosen += outputs;
    }
}

#endif
