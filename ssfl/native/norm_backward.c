#include "group_norm.h"
#include "lanes.h"
#include "parallel.h"

#include <stdlib.h>

/* What an image adds to the parameters' gradients: these rows, of whole registers. */
enum { PLAIN, WEIGHTED, RSTD, BIAS, ROWS };

INLINE long row_of(const norm_shape *s) { return (s->channels + LANES - 1) / LANES * LANES; }

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

/* From the channels' sums to the line that every x of a channel gets, and to the gradient of its bias, if it
   has one: the sum of its dx. */
INLINE void coefficients(const norm_gradients *w, const float *statistics, const float *plain, const float *weighted,
                         float *own, float *slope, float *level, float *dbias)
{
    const norm_shape *s = &w->shape;
    const float *mean = statistics, *rstd = mean + s->groups, *apart = rstd + s->groups;
    const float *bias = w->bias, *gamma = w->gamma;
    long size = s->channels / s->groups, pixels = s->height * s->width;
    double count = (double)size * pixels;
    for (long g = 0; g < s->groups; g++) {
        double a = 0, b = 0, r = rstd[g];
        for (long c = g * size; c < (g + 1) * size; c++) {
            a += (double)gamma[c] * plain[c];
            b += (double)gamma[c] * weighted[c];
        }
        double line = -b * r * r * r / count, height = -a * r / count;
        for (long c = g * size; c < (g + 1) * size; c++) {
            own[c] = gamma[c] * rstd[g];
            slope[c] = (float)line;
            level[c] = (float)(height + line * ((bias ? bias[c] : 0) - mean[g]));
            if (bias)
                dbias[c] = (float)(gamma[c] * r * plain[c] + pixels * (height + line * apart[c]));
        }
    }
}

/* Everything of these images but the parameters' gradients, whose terms go to `sums`. */
FOR_EVERY_PROCESSOR
void norm_images_backward(const norm_gradients *w, long from, long to)
{
    const norm_shape *s = &w->shape;
    float middle[MOST_CHANNELS], own[MOST_CHANNELS], slope[MOST_CHANNELS], level[MOST_CHANNELS];
    int32_t corners[MOST_WINDOWS];
    if (s->pool && !s->last)
        find_corners(s, corners);
    long h = s->height, wide = s->width, channels = s->channels, pixels = h * wide, size = channels * pixels;
    long out = s->pool ? size / 4 : size, in_group = channels / s->groups, row = row_of(s);
    for (long n = from; n < to; n++) {
        const float *dy = w->dy + n * out, *x = w->x + n * size, *y = w->y ? w->y + n * out : 0;
        const float *mean = w->statistics + n * statistics_of(s);
        const uint8_t *chosen = s->pool ? w->chosen + n * out : 0;
        float *dx = w->dx + n * size, *dresidual = w->dresidual ? w->dresidual + n * out : 0;
        float *sums = w->sums + n * ROWS * row, *plain = sums + PLAIN * row, *weighted = sums + WEIGHTED * row;
        for (long c = 0; c < channels; c++) { /* x - middle = (x + bias) - mean */
            middle[c] = mean[c / in_group] - (w->bias ? w->bias[c] : 0);
            sums[RSTD * row + c] = mean[s->groups + c / in_group];
        }
        if (s->pool && s->last)
            pooled_sums_last(h, wide, channels, dy, x, chosen, middle, plain, weighted);
        else if (s->pool)
            pooled_sums_first(s, corners, dy, x, chosen, middle, plain, weighted);
        else if (s->last)
            sums_last(pixels, channels, s->relu, dy, x, y, middle, plain, weighted);
        else
            sums_first(pixels, channels, s->relu, dy, x, y, middle, plain, weighted);
        coefficients(w, mean, plain, weighted, own, slope, level, sums + BIAS * row);
        if (s->pool && s->last)
            pooled_gradient_last(h, wide, channels, dy, x, chosen, own, slope, level, dx);
        else if (s->pool)
            pooled_gradient_first(s, corners, dy, x, chosen, own, slope, level, dx);
        else if (s->last)
            gradient_last(pixels, channels, s->relu, dy, x, y, own, slope, level, dx, dresidual);
        else
            gradient_first(pixels, channels, s->relu, dy, x, y, own, slope, level, dx, dresidual);
    }
}

/* The parameters' gradients: sums over all images, in their order. */
FOR_EVERY_PROCESSOR
void sum_over_images(const norm_gradients *w)
{
    long channels = w->shape.channels, row = row_of(&w->shape);
    for (long c = 0; c < channels; c += LANES) {
        lanes gamma = {0}, beta = {0}, bias = {0};
        for (long n = 0; n < w->shape.images; n++) {
            const float *own = w->sums + n * ROWS * row + c;
            gamma += load(own + WEIGHTED * row) * load(own + RSTD * row);
            beta += load(own + PLAIN * row);
            bias += load(own + BIAS * row);
        }
        size_t size = (channels - c < LANES ? channels - c : LANES) * sizeof(float);
        memcpy(w->parameters + c, &gamma, size);
        memcpy(w->parameters + channels + c, &beta, size);
        if (w->bias)
            memcpy(w->parameters + 2 * channels + c, &bias, size);
    }
}

static void images_part(void *work, int index, int parts)
{
    const norm_gradients *w = work;
    long images = w->shape.images;
    norm_images_backward(w, part_begins(images, 1, index, parts), part_begins(images, 1, index + 1, parts));
}

int norm_backward(const norm_gradients *w, int threads)
{
    norm_gradients own = *w;
    own.sums = malloc(own.shape.images * ROWS * row_of(&own.shape) * sizeof *own.sums);
    if (!own.sums)
        return 0;
    in_parts(parts_for(threads, values_of(&own.shape), LEAST_NORMED), images_part, &own);
    sum_over_images(&own);
    free(own.sums);
    return 1;
}
