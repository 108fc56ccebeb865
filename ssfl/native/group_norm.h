/* GroupNorm with what commonly follows it, in one go: ReLU, an added residual, max-pooling by 2. */
#ifndef SSFL_GROUP_NORM_H
#define SSFL_GROUP_NORM_H

#include <stdint.h>

#define MOST_CHANNELS 4096
#define MOST_WINDOWS 4096 /* of a map that is pooled, channels first */

/* Images of float32, either [images, channels, height, width] or, `last`, [images, height, width, channels]. */
typedef struct {
    long images, channels, height, width, groups;
    int last; /* channels last; their number is then a multiple of 16 */
    int pool; /* max over windows of 2x2 before ReLU; sides are even */
    int relu;
    float eps;
} norm_shape;

/* y = relu(pool(norm(x + bias)) + residual); bias [channels] and residual may be null.
   statistics, for the backward pass: [images, 2 * groups + channels]: each group's mean and 1/deviation, and, with bias,
   the mean of each channel's x + bias less its group's.
   chosen (with pool): [like y] 0-3, which of the window was largest, 4 where ReLU gave zero. */
typedef struct {
    norm_shape shape;
    const float *x, *bias, *residual, *gamma, *beta;
    float *y;
    uint8_t *chosen;
    float *statistics;
} norm_work;

/* From dy [like y] to dx, and dresidual if there was one; parameters: [3, channels], the gradients of gamma, beta and,
   with bias, bias. y: needed for ReLU without pool. */
typedef struct {
    norm_shape shape;
    const float *dy, *x, *y;
    const uint8_t *chosen;
    const float *bias, *gamma, *statistics;
    float *dx, *dresidual, *parameters;
    float *sums; /* to work in: norm_backward.c */
} norm_gradients;

/* Both by at most so many threads, which share the images out (parallel.h). norm_backward makes `sums` itself and
   returns 0 where there is no memory for it. */
void norm_forward(const norm_work *w, int threads);
int norm_backward(const norm_gradients *w, int threads);

#define LEAST_NORMED 65536 /* values of x that are worth a region: some 10 microseconds on one thread */

static inline double values_of(const norm_shape *s) { return (double)s->images * s->channels * s->height * s->width; }

/* Floats of one image's statistics. */
static inline long statistics_of(const norm_shape *s) { return 2 * s->groups + s->channels; }

/* Where each pooled value's window begins in its map. */
static inline void find_corners(const norm_shape *s, int32_t *corners)
{
    for (long i = 0; i < s->height / 2; i++)
        for (long j = 0; j < s->width / 2; j++)
            *corners++ = (int32_t)(2 * i * s->width + 2 * j);
}

#endif
