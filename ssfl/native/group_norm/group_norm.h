/* GroupNorm with the operations that often follow it, in one pass: ReLU, an added residual, max-pooling by 2. */
#ifndef SSFL_GROUP_NORM_H
#define SSFL_GROUP_NORM_H

#include <stdint.h>

#define MOST_CHANNELS 4096
#define MOST_WINDOWS 4096 /* pooling windows of a map, with channels first */

/* Images of float32, either [images, channels, height, width] or, `last`, [images, height, width, channels]. */
typedef struct {
    long images, channels, height, width, groups;
    int last; /* channels last; their number is then a multiple of 16 */
    int pool; /* max over windows of 2x2 before ReLU; sides are even */
    int relu;
    float eps;
} norm_shape;

/* y = relu(pool(norm(x + bias)) + residual); bias [channels] and residual may be null.
   statistics, for the backward pass: [images, 2 * groups + channels]: mean and 1/deviation of each group; with bias,
   also the mean of each channel's x + bias minus that of its group.
   chosen (with pool): [like y] 0-3, index of the largest value in the window; 4 if ReLU returned zero. */
typedef struct {
    norm_shape shape;
    const float *x, *bias, *residual, *gamma, *beta;
    float *y;
    uint8_t *chosen;
    float *statistics;
} norm_work;

/* Gradients from dy [like y]: dx; dresidual if there was a residual; parameters: [3, channels], of gamma, beta and,
   with bias, bias. y: needed for ReLU without pool. */
typedef struct {
    norm_shape shape;
    const float *dy, *x, *y;
    const uint8_t *chosen;
    const float *bias, *gamma, *statistics;
    float *dx, *dresidual, *parameters;
    float *sums; /* scratch: backward.h */
} norm_gradients;

#define HALF_MAPS (2 * MOST_WINDOWS) /* floats in half of the largest map */
#define USUAL_HALF_MAPS 2048         /* floats in half maps that stay in the cache */

/* Number of channels whose half maps are pooled at once, with channels first. */
static inline long channels_at_once(const norm_shape *s)
{
    long count = USUAL_HALF_MAPS / (s->height * s->width / 2);
    return count ? count : 1;
}

#define LEAST_NORMED 65536 /* minimum values of x for a parallel region: about 10 microseconds on one thread */

static inline double values_of(const norm_shape *s) { return (double)s->images * s->channels * s->height * s->width; }

/* Number of floats of one image's statistics. */
static inline long statistics_of(const norm_shape *s) { return 2 * s->groups + s->channels; }

#endif
