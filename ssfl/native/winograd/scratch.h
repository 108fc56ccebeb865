/* Division of a convolution into blocks, and scratch memory. */
#ifndef SSFL_WINOGRAD_SCRATCH_H
#define SSFL_WINOGRAD_SCRATCH_H

#include "gemm.h"
#include "schemes.h"

#define BLOCK_FLOATS (1 << 16) /* floats of a block's transformed inputs and one panel of results */
#define PANEL (WIDE * LANES)   /* output channels that are multiplied at once */

INLINE long lesser(long a, long b) { return a < b ? a : b; }

/* Input channels of a panel whose filters or filters' gradients are transformed at once: half a megabyte. */
INLINE long depth_of(const scheme *m) { return (1 << 17) / (m->filters * m->filters * PANEL) / LANES * LANES; }

typedef struct {
    long tiles, block; /* tiles of all images; tiles computed together */
    int once;          /* all tiles are one block; filters are then transformed when they are used, never all at once */
} blocking;

/* The division for a convolution of some tiles from `in` to `out` channels. */
INLINE blocking blocking_of(const scheme *m, long tiles, long in, long out)
{
    blocking b = {.tiles = tiles};
    long a_tile = m->inputs * m->inputs * in + m->results * m->results * lesser(out, PANEL);
    long usual = BLOCK_FLOATS / a_tile / ROWS * ROWS, least = 4 * ROWS;
    /* One block if its transformed inputs are smaller than the transformed filters of all channels. */
    int few = b.tiles * a_tile <= m->filters * m->filters * in * out / 2;
    b.block = few ? b.tiles : lesser(usual < least ? least : usual, b.tiles);
    b.once = b.block == b.tiles;
    return b;
}

typedef struct {
    float *shared, *own, *zeros; /* `all` is null if memory cannot be allocated */
    void *all;
} scratch;

/* Allocates `shared` floats, `own` floats for each part, and `channels` zeros. */
INLINE scratch scratch_of(long shared, long own, int parts, long channels)
{
    scratch m = {.all = malloc((shared + parts * own + channels + LINE_FLOATS) * sizeof(float))};
    if (!m.all)
        return m;
    m.shared = (float *)(((uintptr_t)m.all + 63) / 64 * 64); /* aligned to a cache line */
    m.own = m.shared + shared;
    m.zeros = m.own + parts * own;
    memset(m.zeros, 0, channels * sizeof(float));
    return m;
}

#endif
