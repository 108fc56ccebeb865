/* How a convolution is cut into blocks, and the memory to work in. */
#ifndef SSFL_WINOGRAD_SCRATCH_H
#define SSFL_WINOGRAD_SCRATCH_H

#include "winograd.h"
#include "winograd_products.h"
#include "winograd_tiles.h"

#define BLOCK_FLOATS (1 << 16) /* of a block's transformed inputs and one panel of results */
#define PANEL (WIDE * LANES)   /* output channels that are multiplied at once */

INLINE long lesser(long a, long b) { return a < b ? a : b; }

typedef struct {
    long tiles, block; /* of all images; computed together */
    int once;          /* all of them at once: then filters are transformed as they are used, and never all of them */
} blocking;

/* Of a convolution from `in` to `out` channels. No result depends on it. */
INLINE blocking blocking_of(const winograd_shape *s, long in, long out)
{
    blocking b = {.tiles = s->images * half_up(s->height) * half_up(s->width)};
    long a_tile = PLACES * (in + lesser(out, PANEL));
    long usual = BLOCK_FLOATS / a_tile / ROWS * ROWS, least = 8 * ROWS;
    /* All at once where that is less than the filters of all channels would be, transformed. */
    int few = b.tiles * a_tile <= PLACES * in * out / 2;
    b.block = few ? b.tiles : lesser(usual < least ? least : usual, b.tiles);
    b.once = b.block == b.tiles;
    return b;
}

typedef struct {
    float *shared, *own, *zeros; /* `all` is null where there is no memory */
    void *all;
} scratch;

/* `shared` floats, `own` floats for each part, and as many zeros as there are channels. */
INLINE scratch scratch_of(long shared, long own, int parts, long channels)
{
    scratch m = {.all = malloc((shared + parts * own + channels + LINE_FLOATS) * sizeof(float))};
    if (!m.all)
        return m;
    m.shared = (float *)(((uintptr_t)m.all + 63) / 64 * 64); /* at the beginning of a line of the cache */
    m.own = m.shared + shared;
    m.zeros = m.own + parts * own;
    memset(m.zeros, 0, channels * sizeof(float));
    return m;
}

#endif
