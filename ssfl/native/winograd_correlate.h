/* The filters' gradients, from the images and the gradients of what became of them.

   They are sums over tiles, which stay in one order; threads share out the input channels, and the output channels too
   where there are few. Each transforms its own channels, some of which others transform as well: little beside the
   products. */
#ifndef SSFL_WINOGRAD_CORRELATE_H
#define SSFL_WINOGRAD_CORRELATE_H

#include "parallel.h"
#include "winograd_scratch.h"

typedef struct {
    const winograd_shape *s;
    const float *dy, *x;
    float *dfilters;
    int slices; /* of the input channels; each slice's parts, if more than one, share out the output channels */
    blocking b;
    float *own; /* of each part, own_size floats: sums, a block's transformed inputs, a panel's transformed gradients */
    long own_size, sums_size, inputs_size;
    const float *zeros;
} correlation;

/* A block's products of `in` input channels and a panel of `columns` outputs, added to those of the blocks before. */
INLINE void add_products(long in, long count, long columns, int add, const float *inputs, const float *gradients,
                         float *sums)
{
    for (int p = 0; p < PLACES; p++) {
        left_matrix a = {inputs + p * plane_of(count * in), 1, in};
        product(in, count, a, gradients + p * plane_of(count * columns), columns, add, sums + p * in * columns);
    }
}

/* Some input channels of some filters, over all tiles. */
static void channels_part(void *work, int index, int parts)
{
    const correlation *c = work;
    const winograd_shape *s = c->s;
    int slice = index % c->slices, group = index / c->slices, groups = parts / c->slices;
    long from = part_begins(s->in, LANES, slice, c->slices), end = part_begins(s->out, LANES, group + 1, groups);
    long begin = part_begins(s->out, LANES, group, groups), in = part_begins(s->in, LANES, slice + 1, c->slices) - from;
    float *sums = c->own + index * c->own_size, *inputs = sums + c->sums_size, *gradients = inputs + c->inputs_size;
    for (long first = 0; first < c->b.tiles && begin < end; first += c->b.block) {
        long count = lesser(c->b.block, c->b.tiles - first);
        tile_range of_x = {s->height, s->width, s->in, first, count}, of_dy = of_x;
        of_dy.channels = s->out;
        surroundings(of_x, 0, count, c->x, from, in, c->zeros, inputs);
        for (long o = begin; o < end; o += PANEL) {
            long columns = lesser(PANEL, end - o);
            float *panel = sums + (c->b.once ? 0 : PLACES * in * (o - begin));
            spread_gradients(of_dy, c->dy, o, columns, c->zeros, gradients);
            add_products(in, count, columns, first > 0, inputs, gradients, panel);
            if (first + count == c->b.tiles)
                filter_gradients(in, panel, columns, s->in, c->dfilters + (o * s->in + from) * TAPS);
        }
    }
}

/* The most channels that a part gets. */
INLINE long largest_part(long channels, int parts)
{
    return (channels / LANES + parts - 1) / parts * LANES;
}

/* 0 where there is no memory to work in. */
static int correlate(const winograd_shape *s, const float *dy, const float *x, float *dfilters, int parts)
{
    correlation c = {.s = s, .dy = dy, .x = x, .dfilters = dfilters, .slices = parts};
    while (c.slices > s->in / LANES || parts % c.slices)
        c.slices--;
    long in = largest_part(s->in, c.slices), out = largest_part(s->out, parts / c.slices);
    long columns = lesser(out, PANEL);
    c.b = blocking_of(s, in, out);
    c.sums_size = PLACES * in * (c.b.once ? columns : out);
    c.inputs_size = PLACES * plane_of(c.b.block * in);
    c.own_size = c.sums_size + c.inputs_size + PLACES * plane_of(c.b.block * columns);
    scratch memory = scratch_of(0, c.own_size, parts, s->in > s->out ? s->in : s->out);
    if (!memory.all)
        return 0;
    c.own = memory.own, c.zeros = memory.zeros;
    in_parts(parts, channels_part, &c);
    free(memory.all);
    return 1;
}

#endif
