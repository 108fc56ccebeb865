/* The filters' gradients, from the images and the gradients of the outputs.

   They are sums over tiles in a fixed order. Threads divide the input channels and, if these are few, the output
   channels too. Each thread transforms its channels; some are transformed by several threads, which costs little
   compared with the products. */
#ifndef SSFL_WINOGRAD_WEIGHT_GRADIENT_H
#define SSFL_WINOGRAD_WEIGHT_GRADIENT_H

#include "../parallel.h"
#include "scratch.h"

typedef struct {
    const scheme *m;
    map_shape x_map, dy_map;
    const float *x, *dy;
    float least;
    float *dfilters;
    int slices; /* slices of the input channels; if a slice has several parts, they divide the output channels */
    blocking b;
    float *own; /* own_size floats per part: sums, a block's transformed inputs, a panel's transformed gradients */
    long own_size, sums_size, inputs_size;
    const float *zeros;
} weight_gradient_work;

/* A block's products of `some` input channels, from `from` on of `in`, and a panel of `columns` outputs; added to
   earlier blocks if `add`. */
INLINE void add_products(const scheme *m, long in, long from, long some, long count, long columns, int add,
                         const float *inputs, const float *gradients, float *sums)
{
    for (int p = 0; p < products_of(m); p++) {
        term t = term_of(m, p);
        left_matrix a = {inputs + t.input * plane_of(count * in) + from, 1, in};
        product(some, count, a, gradients + t.result * plane_of(count * columns), columns, add || !t.first_of_filter,
                sums + t.filter * filter_plane_of(some, columns));
    }
}

/* Computes some input channels of some filters, over all tiles. If these are one block, sums are transformed for as
   many input channels at a time as stay in the cache. */
static void weight_gradient_part(void *work, int index, int parts)
{
    const weight_gradient_work *c = work;
    const scheme *m = c->m;
    long all_in = c->x_map.channels, all_out = c->dy_map.channels;
    int slice = index % c->slices, group = index / c->slices, groups = parts / c->slices;
    long from = part_begins(all_in, LANES, slice, c->slices);
    long in = part_begins(all_in, LANES, slice + 1, c->slices) - from;
    long begin = part_begins(all_out, LANES, group, groups), end = part_begins(all_out, LANES, group + 1, groups);
    long step = c->b.once ? lesser(depth_of(m), in) : in;
    float *sums = c->own + index * c->own_size, *inputs = sums + c->sums_size, *gradients = inputs + c->inputs_size;
    for (long first = 0; first < c->b.tiles && begin < end; first += c->b.block) {
        long count = lesser(c->b.block, c->b.tiles - first);
        tile_range of_x = {c->x_map, first, count}, of_dy = {c->dy_map, first, count};
        window_function *input_transform = c->least > 0 ? m->pruned_transform : m->input_transform;
        input_transform(of_x, 0, count, c->x, from, in, c->least, c->zeros, inputs);
        for (long o = begin; o < end; o += PANEL) {
            long columns = lesser(PANEL, end - o);
            float *panel = sums + (c->b.once ? 0 : (o - begin) / PANEL * panel_floats(m, in, PANEL));
            m->gradient_transform(of_dy, 0, count, c->dy, o, columns, 0, c->zeros, gradients);
            for (long i = 0; i < in; i += step) {
                long some = lesser(step, in - i);
                add_products(m, in, i, some, count, columns, first > 0, inputs, gradients, panel);
                if (first + count == c->b.tiles)
                    m->filter_gradient_transform(some, panel, columns, all_in,
                                                 c->dfilters + (o * all_in + from + i) * TAPS);
            }
        }
    }
}

/* Maximum number of channels of a part. */
INLINE long largest_part(long channels, int parts)
{
    return (channels / LANES + parts - 1) / parts * LANES;
}

/* Returns 0 if memory cannot be allocated. */
static int winograd_weight_gradient(const scheme *m, map_shape x_map, map_shape dy_map, const float *x, const float *dy,
                                    float least, float *dfilters, int parts)
{
    weight_gradient_work c = {.m = m, .x_map = x_map, .dy_map = dy_map, .x = x, .dy = dy, .least = least};
    c.dfilters = dfilters, c.slices = parts;
    while (c.slices > x_map.channels / LANES || parts % c.slices)
        c.slices--;
    long in = largest_part(x_map.channels, c.slices), out = largest_part(dy_map.channels, parts / c.slices);
    long columns = lesser(out, PANEL);
    /* Of all channels: with stride 2 the order of sums depends on the blocks, which must not depend on `parts`. */
    c.b = blocking_of(m, tiles_of(dy_map), x_map.channels, dy_map.channels);
    c.sums_size = c.b.once ? panel_floats(m, lesser(depth_of(m), in), columns)
                           : divide_up(out, PANEL) * panel_floats(m, in, PANEL);
    c.inputs_size = m->inputs * m->inputs * plane_of(c.b.block * in);
    c.own_size = c.sums_size + c.inputs_size + m->results * m->results * plane_of(c.b.block * columns);
    long widest = x_map.channels > dy_map.channels ? x_map.channels : dy_map.channels;
    scratch memory = scratch_of(0, c.own_size, parts, widest);
    if (!memory.all)
        return 0;
    c.own = memory.own, c.zeros = memory.zeros;
    in_parts(parts, weight_gradient_part, &c);
    free(memory.all);
    return 1;
}

#endif
