#ifndef SSFL_GROUP_NORM_FORWARD_H
#define SSFL_GROUP_NORM_FORWARD_H

#include "group_norm.h"
#include "../isa/simd.h"
#include "../parallel.h"

#include <math.h>

#define RUN 64 /* values summed before they are added to the total: keeps float32 sums of a map accurate */

/* Sums over a map's pixels of d = x - shift and of d*d, per channel; shift is the first pixel, to
   avoid cancellation if the mean is far from zero. */
INLINE void moments_of_some(const float *x, long pixels, long channels, int wide, float *sum, float *squares)
{
    lanes all[4] = {0}, all_squares[4] = {0};
    for (long from = 0; from < pixels; from += RUN) {
        long to = from + RUN < pixels ? from + RUN : pixels;
        lanes some[4] = {0}, some_squares[4] = {0};
        for (long p = from; p < to; p++)
            for (int v = 0; v < wide; v++) {
                lanes d = load(x + p * channels + v * LANES) - load(x + v * LANES);
                some[v] += d;
                some_squares[v] += d * d;
            }
        for (int v = 0; v < wide; v++) {
            all[v] += some[v];
            all_squares[v] += some_squares[v];
        }
    }
    for (int v = 0; v < wide; v++) {
        store(sum + v * LANES, all[v]);
        store(squares + v * LANES, all_squares[v]);
    }
}

/* Several registers of channels at once, so that whole cache lines are read. */
INLINE void moments_last(const float *x, long pixels, long channels, float *sum, float *squares)
{
    long c = 0;
    for (; c + 4 * LANES <= channels; c += 4 * LANES)
        moments_of_some(x + c, pixels, channels, 4, sum + c, squares + c);
    for (; c + 2 * LANES <= channels; c += 2 * LANES)
        moments_of_some(x + c, pixels, channels, 2, sum + c, squares + c);
    for (; c < channels; c += LANES)
        moments_of_some(x + c, pixels, channels, 1, sum + c, squares + c);
}

INLINE void moments_first(const float *x, long pixels, long channels, float *sum, float *squares)
{
    for (long c = 0; c < channels; c++) {
        const float *row = x + c * pixels;
        float shift = row[0], rest = 0, rest_squares = 0;
        lanes all = {0}, all_squares = {0};
        long p = 0;
        for (; p + LANES <= pixels; p += LANES) {
            lanes d = load(row + p) - shift;
            all += d;
            all_squares += d * d;
        }
        for (; p < pixels; p++) {
            float d = row[p] - shift;
            rest += d;
            rest_squares += d * d;
        }
        sum[c] = total(all) + rest;
        squares[c] = total(all_squares) + rest_squares;
    }
}

/* Mean and 1/deviation of each group, and from them scale and offset of each channel: y = scale * x + offset. */
INLINE void affine(const norm_shape *s, const float *x, const float *bias, const float *gamma, const float *beta,
                   float *mean, float *rstd, float *apart, float *scale, float *offset)
{
    long pixels = s->height * s->width, size = s->channels / s->groups, stride = s->last ? 1 : pixels;
    float sum[MOST_CHANNELS], squares[MOST_CHANNELS];
    if (s->last)
        moments_last(x, pixels, s->channels, sum, squares);
    else
        moments_first(x, pixels, s->channels, sum, squares);
    for (long g = 0; g < s->groups; g++) {
        double middle = 0, spread = 0;
        for (long c = g * size; c < (g + 1) * size; c++)
            middle += x[c * stride] + (double)sum[c] / pixels + (bias ? bias[c] : 0);
        middle /= size;
        for (long c = g * size; c < (g + 1) * size; c++) {
            double own = (double)sum[c] / pixels, off = x[c * stride] + own + (bias ? bias[c] : 0) - middle;
            spread += squares[c] - own * sum[c] + off * off * pixels;
            apart[c] = (float)off;
        }
        double deviation = spread / ((double)size * pixels);
        mean[g] = (float)middle;
        rstd[g] = (float)(1 / sqrt((deviation > 0 || isnan(deviation) ? deviation : 0) + s->eps));
        for (long c = g * size; c < (g + 1) * size; c++) {
            scale[c] = gamma[c] * rstd[g];
            offset[c] = beta[c] + ((bias ? bias[c] : 0) - mean[g]) * scale[c];
        }
    }
}

INLINE void apply_last(long pixels, long channels, int with_relu, const float *x, const float *residual,
                       const float *scale, const float *offset, float *y)
{
    for (long p = 0; p < pixels; p++)
        for (long c = 0; c < channels; c += LANES) {
            long at = p * channels + c;
            lanes v = load(x + at) * load(scale + c) + load(offset + c);
            if (residual)
                v += load(residual + at);
            store(y + at, with_relu ? relu(v) : v);
        }
}

INLINE void apply_first(long pixels, long channels, int with_relu, const float *x, const float *residual,
                        const float *scale, const float *offset, float *y)
{
    for (long c = 0; c < channels; c++) {
        float a = scale[c], b = offset[c];
        long p = 0, base = c * pixels;
        for (; p + LANES <= pixels; p += LANES) {
            lanes v = load(x + base + p) * a + b;
            if (residual)
                v += load(residual + base + p);
            store(y + base + p, with_relu ? relu(v) : v);
        }
        for (; p < pixels; p++) {
            float v = x[base + p] * a + b;
            if (residual)
                v += residual[base + p];
            y[base + p] = with_relu && v <= 0 ? 0 : v;
        }
    }
}

/* The largest of each window's four values, and its index; index 4 if the value is not positive. */
INLINE lanes largest(const lanes *window, lanes scale, lanes offset, lanes_byte *which)
{
    lanes best = window[0] * scale + offset;
    lanes_int found = {0};
    for (int k = 1; k < 4; k++) {
        lanes v = window[k] * scale + offset;
        lanes_int larger = v > best;
        best = blend(larger, v, best);
        found = (larger & k) | (~larger & found);
    }
    lanes_int dead = best <= 0;
    *which = to_bytes((dead & 4) | (~dead & found));
    return relu(best);
}

INLINE void pool_last(const norm_shape *s, const float *x, const float *scale, const float *offset, float *y,
                      uint8_t *chosen)
{
    long channels = s->channels, row = s->width * channels;
    for (long i = 0; i < s->height / 2; i++)
        for (long j = 0; j < s->width / 2; j++) {
            const float *corner = x + 2 * i * row + 2 * j * channels;
            for (long c = 0; c < channels; c += LANES) {
                const float *at = corner + c;
                lanes window[4] = {load(at), load(at + channels), load(at + row), load(at + row + channels)};
                lanes_byte which;
                long to = (i * (s->width / 2) + j) * channels + c;
                store(y + to, largest(window, load(scale + c), load(offset + c), &which));
                memcpy(chosen + to, &which, sizeof which);
            }
        }
}

/* The larger of every two adjacent values in one channel's map, and which: half a map, plus one register of space. */
INLINE void larger_neighbours(const float *x, long pixels, float scale, float offset, float *larger, float *which)
{
    for (long p = 0; p < pixels; p += 2 * LANES) {
        lanes left, right;
        deinterleave(load_some(x + p, pixels - p), load_some(x + p + LANES, pixels - p - LANES), &left, &right);
        left = left * scale + offset;
        right = right * scale + offset;
        lanes_int larger_right = right > left;
        store(larger + p / 2, blend(larger_right, right, left));
        store(which + p / 2, (lanes)(larger_right & 1));
    }
}

/* The larger of every two rows of a half map. The last register of a row also writes to the next row, which is
   written later. */
INLINE void larger_rows(const norm_shape *s, const float *larger, const float *which, float *y, uint8_t *chosen)
{
    long half = s->width / 2;
    for (long i = 0; i < s->height / 2; i++)
        for (long j = 0; j < half; j += LANES) {
            const float *at = larger + 2 * i * half + j, *of = which + 2 * i * half + j;
            lanes above = load(at), below = load(at + half);
            lanes_int lower = below > above, number = (lanes_int)blend(lower, load(of + half), load(of));
            lanes best = blend(lower, below, above);
            lanes_int dead = best <= 0;
            lanes_byte bytes = to_bytes((dead & 4) | (~dead & (number + (lower & 2))));
            store(y + i * half + j, relu(best));
            memcpy(chosen + i * half + j, &bytes, sizeof bytes);
        }
}

/* Several channels at a time, because reading a register directly after overlapping writes would stall. */
INLINE void pool_first(const norm_shape *s, const float *x, const float *scale, const float *offset, float *y,
                       uint8_t *chosen)
{
    long pixels = s->height * s->width, half = pixels / 2, outputs = pixels / 4, most = channels_at_once(s);
    float larger[HALF_MAPS + 2 * LANES], which[HALF_MAPS + 2 * LANES], best[HALF_MAPS / 2 + LANES];
    uint8_t found[HALF_MAPS / 2 + LANES];
    for (long c = 0; c < s->channels; c += most) {
        long count = s->channels - c < most ? s->channels - c : most;
        for (long k = 0; k < count; k++)
            larger_neighbours(x + (c + k) * pixels, pixels, scale[c + k], offset[c + k], larger + k * half,
                              which + k * half);
        memset(larger + count * half, 0, 2 * LANES * sizeof *larger);
        memset(which + count * half, 0, 2 * LANES * sizeof *which);
        for (long k = 0; k < count; k++)
            larger_rows(s, larger + k * half, which + k * half, best + k * outputs, found + k * outputs);
        memcpy(y + c * outputs, best, count * outputs * sizeof *y);
        memcpy(chosen + c * outputs, found, count * outputs);
    }
}

static void norm_images(const norm_work *w, long from, long to)
{
    const norm_shape *s = &w->shape;
    float scale[MOST_CHANNELS], offset[MOST_CHANNELS];
    long pixels = s->height * s->width, size = s->channels * pixels, out = s->pool ? size / 4 : size;
    for (long n = from; n < to; n++) {
        const float *x = w->x + n * size, *residual = w->residual ? w->residual + n * out : 0;
        float *mean = w->statistics + n * statistics_of(s), *rstd = mean + s->groups, *apart = rstd + s->groups;
        float *y = w->y + n * out;
        uint8_t *chosen = s->pool ? w->chosen + n * out : 0;
        affine(s, x, w->bias, w->gamma, w->beta, mean, rstd, apart, scale, offset);
        if (s->pool && s->last)
            pool_last(s, x, scale, offset, y, chosen);
        else if (s->pool)
            pool_first(s, x, scale, offset, y, chosen);
        else if (s->last)
            apply_last(pixels, s->channels, s->relu, x, residual, scale, offset, y);
        else
            apply_first(pixels, s->channels, s->relu, x, residual, scale, offset, y);
    }
}

static void norm_forward_part(void *work, int index, int parts)
{
    const norm_work *w = work;
    long images = w->shape.images;
    norm_images(w, part_begins(images, 1, index, parts), part_begins(images, 1, index + 1, parts));
}

static void norm_forward(const norm_work *w, int threads)
{
    norm_work own = *w;
    in_parts(parts_for(threads, values_of(&w->shape), LEAST_NORMED), norm_forward_part, &own);
}

#endif
