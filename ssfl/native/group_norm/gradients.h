/* The loops of GroupNorm's backward pass over one image's values. */
#ifndef SSFL_GROUP_NORM_GRADIENTS_H
#define SSFL_GROUP_NORM_GRADIENTS_H

#include "group_norm.h"
#include "../isa/simd.h"

/* dz: the gradient of the norm's output: dy, but zero where ReLU returned zero. */

/* Per channel, over one map: sums of dz and of dz * (x - mean). */
INLINE void sums_of_some(long pixels, long channels, int with_relu, int wide, const float *dy, const float *x,
                         const float *y, const float *mean, float *plain, float *weighted)
{
    lanes a[4] = {0}, b[4] = {0}, zero = {0};
    for (long p = 0; p < pixels; p++)
        for (int v = 0; v < wide; v++) {
            long at = p * channels + v * LANES;
            lanes dz = load(dy + at);
            if (with_relu)
                dz = blend(load(y + at) > 0, dz, zero);
            a[v] += dz;
            b[v] += dz * (load(x + at) - load(mean + v * LANES));
        }
    for (int v = 0; v < wide; v++) {
        store(plain + v * LANES, a[v]);
        store(weighted + v * LANES, b[v]);
    }
}

INLINE void sums_last(long pixels, long channels, int with_relu, const float *dy, const float *x, const float *y,
                      const float *mean, float *plain, float *weighted)
{
    long c = 0;
    for (; c + 4 * LANES <= channels; c += 4 * LANES)
        sums_of_some(pixels, channels, with_relu, 4, dy + c, x + c, y + c, mean + c, plain + c, weighted + c);
    for (; c + 2 * LANES <= channels; c += 2 * LANES)
        sums_of_some(pixels, channels, with_relu, 2, dy + c, x + c, y + c, mean + c, plain + c, weighted + c);
    for (; c < channels; c += LANES)
        sums_of_some(pixels, channels, with_relu, 1, dy + c, x + c, y + c, mean + c, plain + c, weighted + c);
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

/* As sums_of_some, with pooling: only the largest value of a window has a gradient. */
INLINE void pooled_sums_of_some(long height, long width, long channels, int wide, const float *dy, const float *x,
                                const uint8_t *chosen, const float *mean, float *plain, float *weighted)
{
    long row = width * channels;
    lanes a[4] = {0}, b[4] = {0}, zero = {0};
    for (long i = 0; i < height / 2; i++)
        for (long j = 0; j < width / 2; j++)
            for (int v = 0; v < wide; v++) {
                long at = (i * (width / 2) + j) * channels + v * LANES;
                const float *corner = x + 2 * i * row + 2 * j * channels + v * LANES;
                lanes_int which = from_bytes(chosen + at);
                lanes picked = load(corner);
                picked = blend(which == 1, load(corner + channels), picked);
                picked = blend(which == 2, load(corner + row), picked);
                picked = blend(which == 3, load(corner + row + channels), picked);
                lanes dz = blend(which < 4, load(dy + at), zero);
                a[v] += dz;
                b[v] += dz * (picked - load(mean + v * LANES));
            }
    for (int v = 0; v < wide; v++) {
        store(plain + v * LANES, a[v]);
        store(weighted + v * LANES, b[v]);
    }
}

INLINE void pooled_sums_last(long height, long width, long channels, const float *dy, const float *x,
                             const uint8_t *chosen, const float *mean, float *plain, float *weighted)
{
    long c = 0;
    for (; c + 2 * LANES <= channels; c += 2 * LANES)
        pooled_sums_of_some(height, width, channels, 2, dy + c, x + c, chosen + c, mean + c, plain + c, weighted + c);
    for (; c < channels; c += LANES)
        pooled_sums_of_some(height, width, channels, 1, dy + c, x + c, chosen + c, mean + c, plain + c, weighted + c);
}

/* Places the pooled gradients of one channel in their rows of a half map, with zeros elsewhere; sides: 1 if the value
   belongs to the right pixel. The last register of a row also writes to the next row, which is written later. `there`:
   number of values that may be read. */
INLINE void to_rows(const norm_shape *s, long there, const float *dy, const uint8_t *chosen, float *rows, float *sides)
{
    long half = s->width / 2;
    lanes zero = {0};
    for (long i = 0; i < s->height; i++)
        for (long j = 0; j < half; j += LANES) {
            long at = i / 2 * half + j, left = there - at;
            uint8_t numbers[LANES] = {0};
            if (left < LANES)
                memcpy(numbers, chosen + at, left);
            lanes_int which = from_bytes(left < LANES ? numbers : chosen + at), here = which >> 1 == (i & 1);
            store(rows + i * half + j, blend(here, load_some(dy + at, left), zero));
            store(sides + i * half + j, (lanes)(which & 1));
        }
}

/* From a half map to the complete map dz. */
INLINE void to_sides(const float *rows, const float *sides, long pixels, float *dz)
{
    float rest[2 * LANES];
    lanes zero = {0};
    for (long p = 0; p < pixels / 2; p += LANES) {
        lanes own = load(rows + p);
        lanes_int right = (lanes_int)load(sides + p) == 1;
        long left = pixels - 2 * p;
        store_interleaved(left < 2 * LANES ? rest : dz + 2 * p, blend(right, zero, own), blend(right, own, zero));
        if (left < 2 * LANES)
            memcpy(dz + 2 * p, rest, left * sizeof *dz);
    }
}

/* Places the pooled gradients of the first of `images` images in the maps, with zeros elsewhere; several channels at
   a time, as in pool_first. */
INLINE void unpool_first(const norm_shape *s, long images, const float *dy, const uint8_t *chosen, float *dz)
{
    long pixels = s->height * s->width, half = pixels / 2, outputs = pixels / 4, most = channels_at_once(s);
    float rows[HALF_MAPS + LANES], sides[HALF_MAPS + LANES];
    for (long c = 0; c < s->channels; c += most) {
        long count = s->channels - c < most ? s->channels - c : most;
        for (long k = 0; k < count; k++) {
            long before = (c + k) * outputs, there = images * s->channels * outputs - before;
            to_rows(s, there, dy + before, chosen + before, rows + k * half, sides + k * half);
        }
        for (long k = 0; k < count; k++)
            to_sides(rows + k * half, sides + k * half, pixels, dz + (c + k) * pixels);
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

#endif
