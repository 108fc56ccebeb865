#ifndef SSFL_GROUP_NORM_BACKWARD_H
#define SSFL_GROUP_NORM_BACKWARD_H

#include "group_norm.h"
#include "../isa/simd.h"
#include "gradients.h"
#include "../parallel.h"

#include <stdlib.h>

/* Rows of one image's contribution to the parameters' gradients; each row has whole registers. */
enum { PLAIN, WEIGHTED, RSTD, BIAS, TERMS };

INLINE long row_of(const norm_shape *s) { return (s->channels + LANES - 1) / LANES * LANES; }

/* From the channels' sums: per channel the factors of dx = own * dz + slope * x + level, and the gradient of its
   bias, if it has one (the sum of its dx). */
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

/* All gradients of these images; for the parameters' gradients, only the terms of each image, in `sums`. */
static void norm_images_backward(const norm_gradients *w, long from, long to)
{
    const norm_shape *s = &w->shape;
    float middle[MOST_CHANNELS], own[MOST_CHANNELS], slope[MOST_CHANNELS], level[MOST_CHANNELS];
    long h = s->height, wide = s->width, channels = s->channels, pixels = h * wide, size = channels * pixels;
    long out = s->pool ? size / 4 : size, in_group = channels / s->groups, row = row_of(s);
    for (long n = from; n < to; n++) {
        const float *dy = w->dy + n * out, *x = w->x + n * size, *y = w->y ? w->y + n * out : 0;
        const float *mean = w->statistics + n * statistics_of(s);
        const uint8_t *chosen = s->pool ? w->chosen + n * out : 0;
        float *dx = w->dx + n * size, *dresidual = w->dresidual ? w->dresidual + n * out : 0;
        float *sums = w->sums + n * TERMS * row, *plain = sums + PLAIN * row, *weighted = sums + WEIGHTED * row;
        for (long c = 0; c < channels; c++) { /* x - middle = (x + bias) - mean */
            middle[c] = mean[c / in_group] - (w->bias ? w->bias[c] : 0);
            sums[RSTD * row + c] = mean[s->groups + c / in_group];
        }
        const float *dz = dy;
        if (s->pool && !s->last) {
            unpool_first(s, s->images - n, dy, chosen, dx);
            dz = dx;
        }
        int with_relu = s->relu && !s->pool;
        if (s->pool && s->last)
            pooled_sums_last(h, wide, channels, dy, x, chosen, middle, plain, weighted);
        else if (s->last)
            sums_last(pixels, channels, with_relu, dz, x, y, middle, plain, weighted);
        else
            sums_first(pixels, channels, with_relu, dz, x, y, middle, plain, weighted);
        coefficients(w, mean, plain, weighted, own, slope, level, sums + BIAS * row);
        if (s->pool && s->last)
            pooled_gradient_last(h, wide, channels, dy, x, chosen, own, slope, level, dx);
        else if (s->last)
            gradient_last(pixels, channels, with_relu, dz, x, y, own, slope, level, dx, dresidual);
        else
            gradient_first(pixels, channels, with_relu, dz, x, y, own, slope, level, dx, dresidual);
    }
}

/* The parameters' gradients: sums over all images, in order. */
static void sum_over_images(const norm_gradients *w)
{
    long channels = w->shape.channels, row = row_of(&w->shape);
    for (long c = 0; c < channels; c += LANES) {
        lanes gamma = {0}, beta = {0}, bias = {0};
        for (long n = 0; n < w->shape.images; n++) {
            const float *own = w->sums + n * TERMS * row + c;
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

static void norm_backward_part(void *work, int index, int parts)
{
    const norm_gradients *w = work;
    long images = w->shape.images;
    norm_images_backward(w, part_begins(images, 1, index, parts), part_begins(images, 1, index + 1, parts));
}

static int norm_backward(const norm_gradients *w, int threads)
{
    norm_gradients own = *w;
    own.sums = malloc(own.shape.images * TERMS * row_of(&own.shape) * sizeof *own.sums);
    if (!own.sums)
        return 0;
    in_parts(parts_for(threads, values_of(&own.shape), LEAST_NORMED), norm_backward_part, &own);
    sum_over_images(&own);
    free(own.sums);
    return 1;
}

#endif
