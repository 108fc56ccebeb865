/* The convolutions, for one instruction set. */
#ifndef SSFL_WINOGRAD_KERNEL_H
#define SSFL_WINOGRAD_KERNEL_H

#include "convolve.h"
#include "weight_gradient.h"

#define LEAST_PRODUCTS 2e6 /* minimum products for a parallel region: about 30 microseconds on one thread */

/* Whether tiles of 4x4 outputs, with 36 products, need fewer than tiles of 2x2, with 16. */
INLINE int large_tiles_save(long height, long width)
{
    long few = divide_up(height, 4) * divide_up(width, 4), many = divide_up(height, 2) * divide_up(width, 2);
    return 36 * few < 16 * many * 9 / 10;
}

static int winograd(const winograd_work *w)
{
    const winograd_shape *s = &w->shape;
    long by = s->stride;
    const scheme *tiles = large_tiles_save(s->height, s->width) ? &large : &stride_1;
    const scheme *forward = by == 1 ? tiles : &stride_2, *backward = by == 1 ? tiles : &spread;
    long step = forward == &large ? 4 : 2;
    map_shape x = {s->images, s->height, s->width, s->in, step * by};
    map_shape y = {s->images, divide_up(s->height, by), divide_up(s->width, by), s->out, step};
    int parts = parts_for(w->threads, (double)products_of(forward) * tiles_of(y) * s->in * s->out, LEAST_PRODUCTS);
    filter_shape own = {s->in, s->in * TAPS, TAPS, 0}, turned = {s->out, TAPS, s->in * TAPS, 1};
    if (w->y && !winograd_convolve(forward, x, y, own, w->x, w->filters, w->bias, w->y, parts))
        return 0;
    if (w->dx && !winograd_convolve(backward, y, x, turned, w->dy, w->filters, NULL, w->dx, parts))
        return 0;
    return !w->dfilters || winograd_weight_gradient(forward, x, y, w->x, w->dy, w->least, w->dfilters, parts);
}

#endif
