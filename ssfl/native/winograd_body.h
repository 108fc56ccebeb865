/* The convolutions, for one kind of processor (winograd_registers.h). */
#include "winograd_convolve.h"
#include "winograd_correlate.h"

#define LEAST_PRODUCTS 2e6 /* that are worth a region: some 30 microseconds on one thread */

static int compute(const winograd_work *w)
{
    const winograd_shape *s = &w->shape;
    double tiles = (double)s->images * half_up(s->height) * half_up(s->width);
    int parts = parts_for(w->threads, PLACES * tiles * s->in * s->out, LEAST_PRODUCTS);
    filter_shape own = {s->in, s->in * TAPS, TAPS, 0}, turned = {s->out, TAPS, s->in * TAPS, 1};
    if (w->y && !convolve(s, w->x, own, s->out, w->filters, w->bias, w->y, parts))
        return 0;
    if (w->dx && !convolve(s, w->dy, turned, s->in, w->filters, NULL, w->dx, parts))
        return 0;
    return !w->dfilters || correlate(s, w->dy, w->x, w->dfilters, parts);
}
