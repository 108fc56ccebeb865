/* Convolutions, of images or of their outputs' gradients.

   Blocks of tiles are transformed, multiplied panel by panel of output channels (WIDE registers each) and transformed
   back, so that what lies between stays in the cache. Threads share the blocks out. Where there are few tiles and many
   filters, all tiles are one block, filters are transformed as they are used, and threads share the panels out. */
#ifndef SSFL_WINOGRAD_CONVOLVE_H
#define SSFL_WINOGRAD_CONVOLVE_H

#include "parallel.h"
#include "winograd_scratch.h"

typedef struct {
    const winograd_shape *s;
    const float *x, *filters, *bias;
    float *y;
    filter_shape f;
    long out;
    blocking b;
    float *shared; /* transformed: the inputs of all tiles if b.once, else the filters of all channels */
    float *own;    /* of each part, own_size floats: a block's transformed inputs or a panel's filters; results */
    long own_size, first_size;
    const float *zeros;
} convolution;

INLINE tile_range tiles_of(const convolution *c, long channels, long first, long count)
{
    return (tile_range){c->s->height, c->s->width, channels, first, count};
}

/* From a block's transformed inputs and a panel's transformed filters to those channels of y. */
INLINE void panel_outputs(const convolution *c, long first, long count, long o, long columns, const float *inputs,
                          const float *filters, float *results)
{
    long in = c->f.in;
    for (int p = 0; p < PLACES; p++) {
        left_matrix a = {inputs + p * plane_of(count * in), in, 1};
        product(count, in, a, filters + p * in * columns, columns, 0, results + p * plane_of(count * columns));
    }
    outputs(tiles_of(c, c->out, first, count), results, o, columns, c->bias, c->y);
}

/* Some input channels of all filters. */
static void filters_part(void *work, int index, int parts)
{
    const convolution *c = work;
    long from = part_begins(c->f.in, 1, index, parts), to = part_begins(c->f.in, 1, index + 1, parts);
    for (long o = 0; o < c->out; o += PANEL)
        transformed_filters(c->f, c->filters + o * c->f.by_out, lesser(PANEL, c->out - o), from, to,
                            c->shared + PLACES * c->f.in * o);
}

/* Some tiles, block by block. */
static void tiles_part(void *work, int index, int parts)
{
    const convolution *c = work;
    long in = c->f.in, end = part_begins(c->b.tiles, ROWS, index + 1, parts);
    float *inputs = c->own + index * c->own_size, *results = inputs + c->first_size;
    for (long first = part_begins(c->b.tiles, ROWS, index, parts); first < end; first += c->b.block) {
        long count = lesser(c->b.block, end - first);
        surroundings(tiles_of(c, in, first, count), 0, count, c->x, 0, in, c->zeros, inputs);
        for (long o = 0; o < c->out; o += PANEL)
            panel_outputs(c, first, count, o, lesser(PANEL, c->out - o), inputs, c->shared + PLACES * in * o, results);
    }
}

/* Some tiles' inputs, for all panels. */
static void inputs_part(void *work, int index, int parts)
{
    const convolution *c = work;
    long from = part_begins(c->b.tiles, 1, index, parts), to = part_begins(c->b.tiles, 1, index + 1, parts);
    surroundings(tiles_of(c, c->f.in, 0, c->b.tiles), from, to, c->x, 0, c->f.in, c->zeros, c->shared);
}

/* Some output channels of all tiles, panel by panel. */
static void panels_part(void *work, int index, int parts)
{
    const convolution *c = work;
    long end = part_begins(c->out, LANES, index + 1, parts);
    float *filters = c->own + index * c->own_size, *results = filters + c->first_size;
    for (long o = part_begins(c->out, LANES, index, parts); o < end; o += PANEL) {
        long columns = lesser(PANEL, end - o);
        transformed_filters(c->f, c->filters + o * c->f.by_out, columns, 0, c->f.in, filters);
        panel_outputs(c, 0, c->b.tiles, o, columns, c->shared, filters, results);
    }
}

/* Of x with `filters`, of which there are `out`; 0 where there is no memory to work in. */
static int convolve(const winograd_shape *s, const float *x, filter_shape f, long out, const float *filters,
                    const float *bias, float *y, int parts)
{
    convolution c = {.s = s, .x = x, .filters = filters, .bias = bias, .y = y, .f = f, .out = out};
    c.b = blocking_of(s, f.in, out);
    long columns = lesser(out, PANEL), all_filters = PLACES * f.in * out;
    c.first_size = c.b.once ? PLACES * f.in * columns : PLACES * plane_of(c.b.block * f.in);
    c.own_size = c.first_size + PLACES * plane_of(c.b.block * columns);
    scratch memory = scratch_of(c.b.once ? PLACES * plane_of(c.b.tiles * f.in) : all_filters, c.own_size, parts, f.in);
    if (!memory.all)
        return 0;
    c.shared = memory.shared, c.own = memory.own, c.zeros = memory.zeros;
    in_parts(parts, c.b.once ? inputs_part : filters_part, &c);
    in_parts(parts, c.b.once ? panels_part : tiles_part, &c);
    free(memory.all);
    return 1;
}

#endif
