/* Winograd's transforms, on the channels of 2x2 output tiles, their 4x4 input tiles and 3x3 filters.

   With the matrices A, B, G of Lavin and Gray, section 4.1: outputs are A' [(G g G') * (B' d B)] A, so the gradient of
   the filters is G' [(A dy A') * (B' d B)] G. Each of the 16 positions of a transformed tile is a separate plane:
   a matrix whose rows are tiles and whose columns are channels. */
#ifndef SSFL_WINOGRAD_TRANSFORMS_H
#define SSFL_WINOGRAD_TRANSFORMS_H

#include "../isa/simd.h"

#define PLACES 16
#ifndef TAPS
#define TAPS 9
#endif
#define PAGE_FLOATS 1024
#define LINE_FLOATS 16 /* a cache line */

typedef struct {
    long height, width, channels; /* of the map */
    long first, count;            /* range of tiles, numbered over all images */
} tile_range;

typedef struct {
    long image, row, column; /* position of the upper left output */
} tile_place;

INLINE long half_up(long side) { return (side + 1) / 2; }

INLINE tile_place place_of(tile_range r, long tile)
{
    long down = half_up(r.height), across = half_up(r.width), at = r.first + tile;
    return (tile_place){at / (down * across), at / across % down * 2, at % across * 2};
}

/* Distance between planes in floats: never a multiple of a page, because then all 16 writes of a tile would use the
   same few cache lines. */
INLINE long plane_of(long size) { return (size + PAGE_FLOATS - 1) / PAGE_FLOATS * PAGE_FLOATS + LINE_FLOATS; }

INLINE void b_transposed(const lanes d[4], lanes t[4])
{
    t[0] = d[0] - d[2], t[1] = d[1] + d[2], t[2] = d[2] - d[1], t[3] = d[1] - d[3];
}

INLINE void g_times(const lanes g[3], lanes t[4])
{
    lanes half = splat(0.5f), ends = (g[0] + g[2]) * half, middle = g[1] * half;
    t[0] = g[0], t[1] = ends + middle, t[2] = ends - middle, t[3] = g[2];
}

INLINE void g_transposed(const lanes u[4], lanes t[3])
{
    lanes half = splat(0.5f), sum = (u[1] + u[2]) * half, difference = (u[1] - u[2]) * half;
    t[0] = u[0] + sum, t[1] = difference, t[2] = u[3] + sum;
}

INLINE void a_times(const lanes y[2], lanes t[4])
{
    t[0] = y[0], t[1] = y[0] + y[1], t[2] = y[0] - y[1], t[3] = -y[1];
}

INLINE void a_transposed(const lanes m[4], lanes t[2])
{
    t[0] = m[0] + m[1] + m[2], t[1] = m[1] - m[2] - m[3];
}

/* B' d B of the 4x4 input tiles of tiles `from` to `to`, for `columns` channels from `channel` on, to rows of
   planes [count, columns]. zeros: used outside of the map. prune (a constant): whether entries with a magnitude below
   `least` are treated as zeros. */
INLINE void input_transform(tile_range r, long from, long to, const float *map, long channel, long columns,
                            int prune, float least, const float *zeros, float *planes)
{
    long plane = plane_of(r.count * columns);
    for (long t = from; t < to; t++) {
        tile_place at = place_of(r, t);
        const float *pixels[PLACES];
        for (int p = 0; p < PLACES; p++) {
            long i = at.row - 1 + p / 4, j = at.column - 1 + p % 4;
            int inside = i >= 0 && i < r.height && j >= 0 && j < r.width;
            pixels[p] = inside ? map + ((at.image * r.height + i) * r.width + j) * r.channels + channel : zeros;
        }
        for (long c = 0; c < columns; c += LANES) {
            lanes half[4][4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                lanes column[4], turned[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    column[i] = load(pixels[i * 4 + j] + c);
                    if (prune)
                        column[i] = at_least(column[i], least);
                }
                b_transposed(column, turned);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    half[i][j] = turned[i];
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                lanes turned[4];
                b_transposed(half[i], turned);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++)
                    store(planes + (i * 4 + j) * plane + t * columns + c, turned[j]);
            }
        }
    }
}

/* A dy A' of every tile, for `columns` channels from `channel` on, to planes [count, columns]. */
INLINE void output_gradient_transform(tile_range r, const float *map, long channel, long columns, const float *zeros,
                             float *planes)
{
    long plane = plane_of(r.count * columns);
    for (long t = 0; t < r.count; t++) {
        tile_place at = place_of(r, t);
        const float *pixels[4];
        for (int p = 0; p < 4; p++) {
            long i = at.row + p / 2, j = at.column + p % 2;
            int inside = i < r.height && j < r.width;
            pixels[p] = inside ? map + ((at.image * r.height + i) * r.width + j) * r.channels + channel : zeros;
        }
        for (long c = 0; c < columns; c += LANES) {
            lanes half[4][2];
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) {
                lanes column[2] = {load(pixels[j] + c), load(pixels[2 + j] + c)}, turned[4];
                a_times(column, turned);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    half[i][j] = turned[i];
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                lanes turned[4];
                a_times(half[i], turned);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++)
                    store(planes + (i * 4 + j) * plane + t * columns + c, turned[j]);
            }
        }
    }
}

/* A' m A from planes [count, columns] to these channels of the map; adds the bias unless it is null. */
INLINE void output_transform(tile_range r, const float *planes, long channel, long columns, const float *bias, float *map)
{
    long plane = plane_of(r.count * columns);
    for (long t = 0; t < r.count; t++) {
        tile_place at = place_of(r, t);
        float *to = map + ((at.image * r.height + at.row) * r.width + at.column) * r.channels + channel;
        int right = at.column + 1 < r.width, below = at.row + 1 < r.height;
        for (long c = 0; c < columns; c += LANES) {
            lanes half[2][4], added = bias ? load(bias + channel + c) : splat(0);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                lanes column[4], turned[2];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    column[i] = load(planes + (i * 4 + j) * plane + t * columns + c);
                a_transposed(column, turned);
                half[0][j] = turned[0], half[1][j] = turned[1];
            }
            for (int i = 0; i < 1 + below; i++) {
                lanes pair[2];
                a_transposed(half[i], pair);
                store(to + i * r.width * r.channels + c, pair[0] + added);
                if (right)
                    store(to + (i * r.width + 1) * r.channels + c, pair[1] + added);
            }
        }
    }
}

/* Memory layout of the filters of a convolution from `in` channels: distances in floats between outputs (by_out) and
   between inputs (by_in). by_in is TAPS, or by_out if turned. */
typedef struct {
    long in, by_out, by_in;
    int turned; /* taps are reversed, as in the transposed convolution */
} filter_shape;

INLINE void transform_one_register(filter_shape f, const float *filters, float *planes, long columns)
{
    lanes half[4][3];
#pragma GCC unroll 3
    for (int j = 0; j < 3; j++) {
        lanes column[3], turned[4];
#pragma GCC unroll 3
        for (int i = 0; i < 3; i++)
            column[i] = stride(filters + (f.turned ? 8 - (i * 3 + j) : i * 3 + j), f.by_out);
        g_times(column, turned);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            half[i][j] = turned[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        lanes turned[4];
        g_times(half[i], turned);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            store(planes + (i * 4 + j) * f.in * columns, turned[j]);
    }
}

/* G g G' of the filters of `columns` outputs, for inputs `from` to `to`, to rows of planes [in, columns]. Reads the
   filters in memory order; both branches have compile-time constant strides. */
INLINE void filter_transform(filter_shape f, const float *filters, long columns, long from, long to, float *planes)
{
    filter_shape own = {f.in, f.by_out, TAPS, 0}, turned = {f.in, TAPS, f.by_in, 1};
    if (f.turned)
        for (long i = from; i < to; i++)
            for (long o = 0; o < columns; o += LANES)
                transform_one_register(turned, filters + o * TAPS + i * f.by_in, planes + i * columns + o, columns);
    else
        for (long o = 0; o < columns; o += LANES)
            for (long i = from; i < to; i++)
                transform_one_register(own, filters + o * f.by_out + i * TAPS, planes + i * columns + o, columns);
}

/* G' u G from planes [in, columns] to the gradients of these filters, [columns, all, 3, 3], for the first `in` of `all`
   inputs. */
INLINE void filter_gradient_transform(long in, const float *planes, long columns, long all, float *gradients)
{
    for (long o = 0; o < columns; o += LANES)
        for (long c = 0; c < in; c++) {
            lanes half[3][4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                lanes column[4], turned[3];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    column[i] = load(planes + ((i * 4 + j) * in + c) * columns + o);
                g_transposed(column, turned);
#pragma GCC unroll 3
                for (int i = 0; i < 3; i++)
                    half[i][j] = turned[i];
            }
            float taps[9][LANES];
#pragma GCC unroll 3
            for (int i = 0; i < 3; i++) {
                lanes turned[3];
                g_transposed(half[i], turned);
#pragma GCC unroll 3
                for (int j = 0; j < 3; j++)
                    store(taps[i * 3 + j], turned[j]);
            }
            for (int l = 0; l < LANES; l++)
                for (int t = 0; t < 9; t++)
                    gradients[((o + l) * all + c) * 9 + t] = taps[t][l];
        }
}

#endif
