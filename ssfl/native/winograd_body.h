/* The convolutions, for one kind of processor (winograd_registers.h).

   A block of tiles is transformed, multiplied panel by panel of output channels (WIDE registers each) and
   transformed back before the next, so that what lies between stays in the cache. */
#include "winograd_products.h"
#include "winograd_tiles.h"
#include "winograd.h"

#define BLOCK_FLOATS (1 << 16) /* of the transformed inputs and one panel of results */
#define TAPS 9

INLINE long lesser(long a, long b) { return a < b ? a : b; }

typedef struct {
    long tiles, block; /* of all images; computed together */
    int once;          /* all of them at once: then filters are transformed as they are used, and never all of them */
    float *filters, *inputs, *results, *zeros;
    void *memory;
} workspace;

/* For a convolution from `in` to `out` channels; memory is null where there is none. */
INLINE workspace workspace_for(const winograd_shape *s, long in, long out, long panel)
{
    workspace w = {.tiles = s->images * half_up(s->height) * half_up(s->width)};
    long columns = lesser(out, panel), a_tile = PLACES * (in + columns);
    long usual = BLOCK_FLOATS / a_tile / ROWS * ROWS, least = 8 * ROWS;
    /* All at once where that is less than the filters of all channels would be, transformed. */
    int few = w.tiles * a_tile <= PLACES * in * out / 2;
    w.block = few ? w.tiles : lesser(usual < least ? least : usual, w.tiles);
    w.once = w.block == w.tiles;
    long filters = PLACES * in * (w.once ? columns : out), most = in > out ? in : out;
    long inputs = PLACES * plane_of(w.block * in), results = PLACES * plane_of(w.block * columns);
    w.memory = malloc((filters + inputs + results + most + LINE_FLOATS) * sizeof(float));
    if (!w.memory)
        return w;
    w.filters = (float *)(((uintptr_t)w.memory + 63) / 64 * 64); /* at the beginning of a line of the cache */
    w.inputs = w.filters + filters;
    w.results = w.inputs + inputs;
    w.zeros = w.results + results;
    memset(w.zeros, 0, most * sizeof(float));
    return w;
}

/* The convolution of x with `filters`, of which there are `out`. */
INLINE int convolve(const winograd_shape *s, const float *x, filter_shape f, long out, const float *filters,
                    const float *bias, float *y)
{
    long in = f.in, panel = WIDE * LANES;
    workspace w = workspace_for(s, in, out, panel);
    if (!w.memory)
        return 0;
    for (long o = 0; o < out && !w.once; o += panel)
        transformed_filters(f, filters + o * f.by_out, lesser(panel, out - o), w.filters + PLACES * in * o);
    for (long first = 0; first < w.tiles; first += w.block) {
        long count = lesser(w.block, w.tiles - first);
        surroundings((tile_range){s->height, s->width, in, first, count}, x, w.zeros, w.inputs);
        for (long o = 0; o < out; o += panel) {
            long columns = lesser(panel, out - o);
            float *own = w.filters + (w.once ? 0 : PLACES * in * o);
            if (w.once)
                transformed_filters(f, filters + o * f.by_out, columns, own);
            for (int p = 0; p < PLACES; p++) {
                left_matrix a = {w.inputs + p * plane_of(count * in), in, 1};
                product(count, in, a, own + p * in * columns, columns, 0, w.results + p * plane_of(count * columns));
            }
            outputs((tile_range){s->height, s->width, out, first, count}, w.results, o, columns, bias, y);
        }
    }
    free(w.memory);
    return 1;
}

/* The filters' gradients, from the images and the gradients of what became of them. */
INLINE int correlate(const winograd_shape *s, const float *dy, const float *x, float *dfilters)
{
    long in = s->in, out = s->out, panel = WIDE * LANES;
    workspace w = workspace_for(s, in, out, panel);
    if (!w.memory)
        return 0;
    for (long first = 0; first < w.tiles; first += w.block) {
        long count = lesser(w.block, w.tiles - first);
        surroundings((tile_range){s->height, s->width, in, first, count}, x, w.zeros, w.inputs);
        for (long o = 0; o < out; o += panel) {
            long columns = lesser(panel, out - o);
            float *own = w.filters + (w.once ? 0 : PLACES * in * o);
            spread_gradients((tile_range){s->height, s->width, out, first, count}, dy, o, columns, w.zeros, w.results);
            for (int p = 0; p < PLACES; p++) {
                left_matrix a = {w.inputs + p * plane_of(count * in), 1, in};
                product(in, count, a, w.results + p * plane_of(count * columns), columns, first > 0,
                        own + p * in * columns);
            }
            if (first + count == w.tiles)
                filter_gradients(in, own, columns, dfilters + o * in * TAPS);
        }
    }
    free(w.memory);
    return 1;
}

static int compute(const winograd_work *w)
{
    const winograd_shape *s = &w->shape;
    filter_shape own = {s->in, s->in * TAPS, TAPS, 0}, turned = {s->out, TAPS, s->in * TAPS, 1};
    if (w->y && !convolve(s, w->x, own, s->out, w->filters, w->bias, w->y))
        return 0;
    if (w->dx && !convolve(s, w->dy, turned, s->in, w->filters, NULL, w->dx))
        return 0;
    return !w->dfilters || correlate(s, w->dy, w->x, w->dfilters);
}
