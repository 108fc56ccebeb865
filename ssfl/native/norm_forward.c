#include "group_norm.h"
#include "lanes.h"
#include "parallel.h"

#include <math.h>

#define RUN 64 /* values summed before they join the total: keeps float32 sums of a map accurate */

/* Sums over a map's pixels of d = x - shift and of d*d, per channel; shift is the first pixel, so that nothing
   cancels where the mean is far from zero. */
INLINE void moments_last(const float *x, long pixels, long channels, float *sum, float *squares)
{
    for (long c = 0; c < channels; c += LANES) {
        lanes shift = load(x + c), all = {0}, all_squares = {0};
        for (long from = 0; from < pixels; from += RUN) {
            long to = from + RUN < pixels ? from + RUN : pixels;
            lanes some = {0}, some_squares = {0};
            for (long p = from; p < to; p++) {
                lanes d = load(x + p * channels + c) - shift;
                some += d;
                some_squares += d * d;
            }
            all += some;
            all_squares += some_squares;
        }
        store(sum + c, all);
        store(squares + c, all_squares);
    }
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

/* The groups' mean and 1/deviation, and with them each channel's y = scale * x + offset. */
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

/* The largest of each window's four, and which: 4 where it is not positive. */
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

INLINE void pool_first(const norm_shape *s, const int32_t *corners, const float *x, const float *scale,
                       const float *offset, float *y, uint8_t *chosen)
{
    long pixels = s->height * s->width, outputs = pixels / 4, width = s->width;
    for (long c = 0; c < s->channels; c++) {
        lanes a = splat(scale[c]), b = splat(offset[c]);
        for (long from = 0; from < outputs; from += LANES) {
            long count = outputs - from < LANES ? outputs - from : LANES;
            int32_t some[LANES] = {0};
            const int32_t *at = corners + from;
            if (count < LANES)
                at = memcpy(some, at, count * sizeof *at);
            lanes window[4] = {pick(x, at), pick(x + 1, at), pick(x + width, at), pick(x + width + 1, at)};
            lanes_byte which;
            lanes best = largest(window, a, b, &which);
            memcpy(y + from, &best, count * sizeof *y);
            memcpy(chosen + from, &which, count);
        }
        x += pixels;
        y += outputs;
        chosen += outputs;
    }
}

FOR_EVERY_PROCESSOR
void norm_images(const norm_work *w, long from, long to)
{
    const norm_shape *s = &w->shape;
    float scale[MOST_CHANNELS], offset[MOST_CHANNELS];
    int32_t corners[MOST_WINDOWS];
    if (s->pool && !s->last)
        find_corners(s, corners);
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
            pool_first(s, corners, x, scale, offset, y, chosen);
        else if (s->last)
            apply_last(pixels, s->channels, s->relu, x, residual, scale, offset, y);
        else
            apply_first(pixels, s->channels, s->relu, x, residual, scale, offset, y);
    }
}

static void images_part(void *work, int index, int parts)
{
    const norm_work *w = work;
    long images = w->shape.images;
    norm_images(w, part_begins(images, 1, index, parts), part_begins(images, 1, index + 1, parts));
}

void norm_forward(const norm_work *w, int threads)
{
    norm_work own = *w;
    in_parts(parts_for(threads, values_of(&w->shape), LEAST_NORMED), images_part, &own);
}
