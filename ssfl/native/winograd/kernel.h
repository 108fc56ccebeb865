/* The convolutions, for one instruction set. */
#ifndef SSFL_WINOGRAD_KERNEL_H
#define SSFL_WINOGRAD_KERNEL_H

#include "convolve.h"
#include "weight_gradient.h"

#define LEAST_PRODUCTS 2e6 /* minimum products for a parallel region: about 30 microseconds on one thread */

static int winograd(const winograd_work *w)
{
    const winograd_shape *s = &w->shape;
    double tiles = (double)s->images * half_up(s->height) * half_up(s->width);
    int parts = parts_for(w->threads, PLACES * tiles * s->in * s->out, LEAST_PRODUCTS);
    filter_shape own = {s->in, s->in * TAPS, TAPS, 0}, turned = {s->out, TAPS, s->in * TAPS, 1};
    if (w->y && !winograd_convolve(s, w->x, own, s->out, w->filters, w->bias, w->y, parts))
        return 0;
    if (w->dx && !winograd_convolve(s, w->dy, turned, s->in, w->filters, NULL, w->dx, parts))
        return 0;
    return !w->dfilters || winograd_weight_gradient(s, w->dy, w->x, w->least, w->dfilters, parts);
}

#endif
