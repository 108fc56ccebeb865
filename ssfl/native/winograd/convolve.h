/* Convolutions of images or of the gradients of outputs.

   Blocks of tiles are transformed, multiplied with one panel of output channels (WIDE registers) at a time and
   transformed back, so that intermediate results stay in the cache. Threads divide the blocks. With few tiles and many
   filters, all tiles are one block, filters are transformed when they are used, for some input channels at a time, and
   threads divide the panels. */
#ifndef SSFL_WINOGRAD_CONVOLVE_H
#define SSFL_WINOGRAD_CONVOLVE_H

#include "../parallel.h"
#include "scratch.h"

#define LONGEST_SUM 64 /* products; longer sums have larger rounding errors */

typedef struct {
    const scheme *m;
    map_shape x_map, y_map;
    filter_shape f;
    const float *x, *filters, *bias;
    float *y;
    blocking b;
    float *shared; /* transformed: the inputs of all tiles if b.once, else the filters of all channels */
    float *own;    /* own_size floats per part: a block's transformed inputs or a panel's filters; results */
    long own_size, first_size;
    const float *zeros;
} convolution;

/* A block's transformed inputs (`depth` channels from `from` on) times a panel's filters for these channels. Not
   inlined, because the innermost loop would then have too few registers. */
static __attribute__((noinline)) void panel_products(const convolution *c, long count, long from, long depth,
                                                     long columns, const float *inputs, const float *filters,
                                                     float *results)
{
    for (int p = 0; p < products_of(c->m); p++) {
        term t = term_of(c->m, p);
        const float *left = inputs + t.input * plane_of(count * c->f.in) + from;
        const float *right = filters + t.filter * filter_plane_of(depth, columns);
        for (long k = 0; k < depth; k += LONGEST_SUM) {
            left_matrix a = {left + k, c->f.in, 1};
            product(count, lesser(LONGEST_SUM, depth - k), a, right + k * columns, columns,
                    from + k > 0 || !t.first_of_result, results + t.result * plane_of(count * columns));
        }
    }
}

/* Transforms all filters for some input channels. */
static void filters_part(void *work, int index, int parts)
{
    const convolution *c = work;
    long from = part_begins(c->f.in, LANES, index, parts), to = part_begins(c->f.in, LANES, index + 1, parts);
    long out = c->y_map.channels;
    for (long o = 0; o < out; o += PANEL)
        c->m->filter_transform(c->f, c->filters + o * c->f.by_out, lesser(PANEL, out - o), from, to,
                               c->shared + o / PANEL * panel_floats(c->m, c->f.in, PANEL));
}

/* Computes some tiles, block by block. */
static void tiles_part(void *work, int index, int parts)
{
    const convolution *c = work;
    long in = c->f.in, out = c->y_map.channels, end = part_begins(c->b.tiles, ROWS, index + 1, parts);
    float *inputs = c->own + index * c->own_size, *results = inputs + c->first_size;
    for (long first = part_begins(c->b.tiles, ROWS, index, parts); first < end; first += c->b.block) {
        long count = lesser(c->b.block, end - first);
        tile_range of_x = {c->x_map, first, count}, of_y = {c->y_map, first, count};
        c->m->input_transform(of_x, 0, count, c->x, 0, in, 0, c->zeros, inputs);
        for (long o = 0; o < out; o += PANEL) {
            long columns = lesser(PANEL, out - o);
            const float *filters = c->shared + o / PANEL * panel_floats(c->m, in, PANEL);
            panel_products(c, count, 0, in, columns, inputs, filters, results);
            c->m->result_transform(of_y, results, o, columns, c->bias, c->y);
        }
    }
}

/* Transforms the inputs of some tiles, for all panels. */
static void inputs_part(void *work, int index, int parts)
{
    const convolution *c = work;
    long from = part_begins(c->b.tiles, 1, index, parts), to = part_begins(c->b.tiles, 1, index + 1, parts);
    tile_range all = {c->x_map, 0, c->b.tiles};
    c->m->input_transform(all, from, to, c->x, 0, c->f.in, 0, c->zeros, c->shared);
}

/* Computes some output channels of all tiles, panel by panel. */
static void panels_part(void *work, int index, int parts)
{
    const convolution *c = work;
    long end = part_begins(c->y_map.channels, LANES, index + 1, parts);
    float *filters = c->own + index * c->own_size, *results = filters + c->first_size;
    tile_range all = {c->y_map, 0, c->b.tiles};
    for (long o = part_begins(c->y_map.channels, LANES, index, parts); o < end; o += PANEL) {
        long columns = lesser(PANEL, end - o);
        for (long from = 0; from < c->f.in; from += depth_of(c->m)) {
            filter_shape some = c->f;
            some.in = lesser(depth_of(c->m), c->f.in - from);
            const float *at = c->filters + o * some.by_out + from * some.by_in;
            c->m->filter_transform(some, at, columns, 0, some.in, filters);
            panel_products(c, c->b.tiles, from, some.in, columns, c->shared, filters, results);
        }
        c->m->result_transform(all, results, o, columns, c->bias, c->y);
    }
}

/* Convolves x with filters. Returns 0 if memory cannot be allocated. */
static int winograd_convolve(const scheme *m, map_shape x_map, map_shape y_map, filter_shape f, const float *x,
                             const float *filters, const float *bias, float *y, int parts)
{
    convolution c = {.m = m, .x_map = x_map, .y_map = y_map, .f = f, .x = x, .filters = filters, .bias = bias, .y = y};
    long out = y_map.channels, columns = lesser(out, PANEL), inputs = m->inputs * m->inputs;
    c.b = blocking_of(m, tiles_of(y_map), f.in, out);
    c.first_size = c.b.once ? panel_floats(m, lesser(depth_of(m), f.in), columns) : inputs * plane_of(c.b.block * f.in);
    c.own_size = c.first_size + m->results * m->results * plane_of(c.b.block * columns);
    long shared = c.b.once ? inputs * plane_of(c.b.tiles * f.in) : divide_up(out, PANEL) * panel_floats(m, f.in, PANEL);
    scratch memory = scratch_of(shared, c.own_size, parts, f.in);
    if (!memory.all)
        return 0;
    c.shared = memory.shared, c.own = memory.own, c.zeros = memory.zeros;
    in_parts(parts, c.b.once ? inputs_part : filters_part, &c);
    in_parts(parts, c.b.once ? panels_part : tiles_part, &c);
    free(memory.all);
    return 1;
}

#endif
