/* The filters' gradients, from the images and the gradients of the outputs.

   They are sums over tiles in a fixed order. Threads divide the input channels and, if these are few, the output
   channels too. Each thread transforms its channels; some are transformed by several threads, which costs little
   compared with the products. */
#ifndef SSFL_WINOGRAD_WEIGHT_GRADIENT_H
#define SSFL_WINOGRAD_WEIGHT_GRADIENT_H

#include "../parallel.h"
#include "scratch.h"

typedef struct {
    const winograd_shape *s;
    const float *dy, *x;
    float least;
    float *dfilters;
    int slices; /* slices of the input channels; if a slice has several parts, they divide the output channels */
    blocking b;
    float *own; /* own_size floats per part: sums, a block's transformed inputs, a panel's transformed gradients */
    long own_size, sums_size, inputs_size;
    const float *zeros;
} weight_gradient_work;

/* A block's products of `in` input channels and a panel of `columns` outputs; added to earlier blocks if `add`. */
INLINE void add_products(long in, long count, long columns, int add, const float *inputs, const float *gradients,
                         float *sums)
{
    for (int p = 0; p < PLACES; p++) {
        left_matrix a = {inputs + p * plane_of(count * in), 1, in};
        product(in, count, a, gradients + p * plane_of(count * columns), columns, add, sums + p * in * columns);
    }
}

/* Computes some input channels of some filters, over all tiles. */
static void weight_gradient_part(void *work, int index, int parts)
{
    const weight_gradient_work *c = work;
    const winograd_shape *s = c->s;
    int slice = index % c->slices, group = index / c->slices, groups = parts / c->slices;
    long from = part_begins(s->in, LANES, slice, c->slices), end = part_begins(s->out, LANES, group + 1, groups);
    long begin = part_begins(s->out, LANES, group, groups), in = part_begins(s->in, LANES, slice + 1, c->slices) - from;
    float *sums = c->own + index * c->own_size, *inputs = sums + c->sums_size, *gradients = inputs + c->inputs_size;
    for (long first = 0; first < c->b.tiles && begin < end; first += c->b.block) {
        long count = lesser(c->b.block, c->b.tiles - first);
        tile_range of_x = {s->height, s->width, s->in, first, count}, of_dy = of_x;
        of_dy.channels = s->out;
        if (c->least > 0)
            input_transform(of_x, 0, count, c->x, from, in, 1, c->least, c->zeros, inputs);
        else
            input_transform(of_x, 0, count, c->x, from, in, 0, 0, c->zeros, inputs);
        for (long o = begin; o < end; o += PANEL) {
            long columns = lesser(PANEL, end - o);
            float *panel = sums + (c->b.once ? 0 : PLACES * in * (o - begin));
            output_gradient_transform(of_dy, c->dy, o, columns, c->zeros, gradients);
            add_products(in, count, columns, first > 0, inputs, gradients, panel);
            if (first + count == c->b.tiles)
                filter_gradient_transform(in, panel, columns, s->in, c->dfilters + (o * s->in + from) * TAPS);
        }
    }
}

/* Maximum number of channels of a part. */
INLINE long largest_part(long channels, int parts)
{
    return (channels / LANES + parts - 1) / parts * LANES;
}

/* Returns 0 if memory cannot be allocated. */
static int winograd_weight_gradient(const winograd_shape *s, const float *dy, const float *x, float least,
                                    float *dfilters, int parts)
{
    weight_gradient_work c = {.s = s, .dy = dy, .x = x, .least = least, .dfilters = dfilters, .slices = parts};
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
    in_parts(parts, weight_gradient_part, &c);
    free(memory.all);
    return 1;
}

#endif
