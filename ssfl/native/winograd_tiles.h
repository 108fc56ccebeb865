/* Winograd's transforms, on the channels of 2x2 tiles of outputs, their 4x4 surroundings and 3x3 filters.

   With the matrices A, B, G of Lavin and Gray, section 4.1: outputs are A' [(G g G') * (B' d B)] A, so the gradient of
   the filters is G' [(A dy A') * (B' d B)] G. Each of the 16 places of a transformed tile is a plane of its own, and in
   every plane tiles are rows and channels columns, ready to be multiplied. */
#ifndef SSFL_WINOGRAD_TILES_H
#define SSFL_WINOGRAD_TILES_H

#include "winograd_registers.h"

#define PLACES 16
#define TAPS 9
#define PAGE_FLOATS 1024
#define LINE_FLOATS 16 /* a line of the cache */

typedef struct {
    long height, width, channels; /* of the map */
    long first, count;            /* the tiles, of all images' in a row */
} tile_range;

typedef struct {
    long image, row, column; /* of its upper left output */
} tile_place;

INLINE long half_up(long side) { return (side + 1) / 2; }

INLINE tile_place place_of(tile_range r, long tile)
{
    long down = half_up(r.height), across = half_up(r.width), at = r.first + tile;
    return (tile_place){at / (down * across), at / across % down * 2, at % across * 2};
}

/* Floats from one plane to the next: never a multiple of a page, or all 16 writes of a tile would go to the same few
   lines of the cache. */
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

/* B' d B of the 4x4 surroundings of tiles `from` to `to`, of `columns` channels from `channel` on: those rows of planes
   of [count, columns]. zeros: what lies outside of the map. */
INLINE void surroundings(tile_range r, long from, long to, const float *map, long channel, long columns,
                         const float *zeros, float *planes)
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
                for (int i = 0; i < 4; i++)
                    column[i] = load(pixels[i * 4 + j] + c);
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

/* A dy A' of every tile of `columns` channels from `channel` on: planes of [count, columns]. */
INLINE void spread_gradients(tile_range r, const float *map, long channel, long columns, const float *zeros,
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

/* A' m A from planes of [count, columns] to those channels of the map, and the bias unless it is null. */
INLINE void outputs(tile_range r, const float *planes, long channel, long columns, const float *bias, float *map)
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

/* Filters of a convolution from `in` channels, where they lie: by_out and by_in floats from one to the next, of which
   by_in, or by_out if turned, is TAPS. */
typedef struct {
    long in, by_out, by_in;
    int turned; /* taps in reverse: those of the transposed convolution */
} filter_shape;

INLINE void transform_filters(filter_shape f, const float *filters, float *planes, long columns)
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

/* G g G' of `columns` outputs' filters, for inputs `from` to `to`: those rows of planes of [in, columns]. Goes through
   the filters as they lie; what is constant in either way is said so. */
INLINE void transformed_filters(filter_shape f, const float *filters, long columns, long from, long to, float *planes)
{
    filter_shape own = {f.in, f.by_out, TAPS, 0}, turned = {f.in, TAPS, f.by_in, 1};
    if (f.turned)
        for (long i = from; i < to; i++)
            for (long o = 0; o < columns; o += LANES)
                transform_filters(turned, filters + o * TAPS + i * f.by_in, planes + i * columns + o, columns);
    else
        for (long o = 0; o < columns; o += LANES)
            for (long i = from; i < to; i++)
                transform_filters(own, filters + o * f.by_out + i * TAPS, planes + i * columns + o, columns);
}

/* G' u G from planes of [in, columns] to the gradients of those filters, which have `all` inputs: [columns, all, 3, 3],
   of which they are the first. */
INLINE void filter_gradients(long in, const float *planes, long columns, long all, float *gradients)
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
