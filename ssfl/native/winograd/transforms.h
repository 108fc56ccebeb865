/* Transforms of the channels of tiles of a map, and of 3x3 filters, by any matrix in both dimensions.

   Each position of a transformed tile or filter is a separate plane: a matrix whose rows are tiles or input channels
   and whose columns are channels. The functions are templates: a matrix and its sizes are constants (schemes.h). */
#ifndef SSFL_WINOGRAD_TRANSFORMS_H
#define SSFL_WINOGRAD_TRANSFORMS_H

#include "../isa/simd.h"

#define TAPS 9
#define SIDES 6 /* maximum side of a window, and maximum planes of a dimension */
#define PAGE_FLOATS 1024
#define LINE_FLOATS 16 /* a cache line */

typedef struct {
    long images, height, width, channels;
    long step; /* distance between tiles */
} map_shape;

typedef struct {
    map_shape map;
    long first, count; /* range of tiles, numbered over all images */
} tile_range;

typedef struct {
    long image, row, column; /* position of the upper left pixel */
} tile_place;

/* A product with a constant matrix: `to` = matrix times `from`. */
typedef void matrix(const lanes *from, lanes *to);

INLINE long divide_up(long a, long b) { return (a + b - 1) / b; }

INLINE long tiles_of(map_shape m) { return m.images * divide_up(m.height, m.step) * divide_up(m.width, m.step); }

INLINE tile_place place_of(tile_range r, long tile)
{
    long step = r.map.step, down = divide_up(r.map.height, step), across = divide_up(r.map.width, step);
    long at = r.first + tile;
    return (tile_place){at / (down * across), at / across % down * step, at % across * step};
}

/* Distance in floats between planes of `size` floats: never a multiple of a page, because then all writes of a tile
   would use the same few cache lines. */
INLINE long plane_of(long size) { return (size + PAGE_FLOATS - 1) / PAGE_FLOATS * PAGE_FLOATS + LINE_FLOATS; }

/* The same between planes [in, columns] of filters. */
INLINE long filter_plane_of(long in, long columns) { return in * columns + LINE_FLOATS; }

/* M d M' of windows d of `side` x `side` pixels that begin `margin` pixels above and left of tiles `from` to `to`, for
   `columns` channels from `channel` on, to rows of planes [count, columns]. zeros: used outside of the map. prune:
   whether entries with a magnitude below `least` are treated as zeros. m has `planes` rows. */
INLINE void window_transform(matrix *m, int side, int planes, int margin, int prune, tile_range r, long from, long to,
                             const float *map, long channel, long columns, float least, const float *zeros, float *out)
{
    long plane = plane_of(r.count * columns);
    for (long t = from; t < to; t++) {
        tile_place at = place_of(r, t);
        const float *pixels[SIDES * SIDES];
        for (int p = 0; p < side * side; p++) {
            long i = at.row - margin + p / side, j = at.column - margin + p % side;
            int inside = i >= 0 && i < r.map.height && j >= 0 && j < r.map.width;
            long pixel = (at.image * r.map.height + i) * r.map.width + j;
            pixels[p] = inside ? map + pixel * r.map.channels + channel : zeros;
        }
        for (long c = 0; c < columns; c += LANES) {
            lanes half[SIDES][SIDES];
#pragma GCC unroll 6
            for (int j = 0; j < side; j++) {
                lanes column[SIDES], turned[SIDES];
#pragma GCC unroll 6
                for (int i = 0; i < side; i++) {
                    column[i] = load(pixels[i * side + j] + c);
                    if (prune)
                        column[i] = at_least(column[i], least);
                }
                m(column, turned);
#pragma GCC unroll 6
                for (int i = 0; i < planes; i++)
                    half[i][j] = turned[i];
            }
#pragma GCC unroll 6
            for (int i = 0; i < planes; i++) {
                lanes turned[SIDES];
                m(half[i], turned);
#pragma GCC unroll 6
                for (int j = 0; j < planes; j++)
                    store(out + (i * planes + j) * plane + t * columns + c, turned[j]);
            }
        }
    }
}

/* M p M' from planes p [count, columns] to the `side` x `side` pixels of every tile that are inside of the map, for
   these channels of it; adds the bias unless it is null. m has `planes` columns. */
INLINE void tile_transform(matrix *m, int planes, int side, tile_range r, const float *in, long channel, long columns,
                           const float *bias, float *map)
{
    long plane = plane_of(r.count * columns), width = r.map.width, channels = r.map.channels;
    for (long t = 0; t < r.count; t++) {
        tile_place at = place_of(r, t);
        float *to = map + ((at.image * r.map.height + at.row) * width + at.column) * channels + channel;
        long down = r.map.height - at.row, across = width - at.column;
        for (long c = 0; c < columns; c += LANES) {
            lanes half[SIDES][SIDES], added = bias ? load(bias + channel + c) : splat(0);
#pragma GCC unroll 6
            for (int j = 0; j < planes; j++) {
                lanes column[SIDES], turned[SIDES];
#pragma GCC unroll 6
                for (int i = 0; i < planes; i++)
                    column[i] = load(in + (i * planes + j) * plane + t * columns + c);
                m(column, turned);
#pragma GCC unroll 6
                for (int i = 0; i < side; i++)
                    half[i][j] = turned[i];
            }
            for (int i = 0; i < side && i < down; i++) {
                lanes row[SIDES];
                m(half[i], row);
#pragma GCC unroll 6
                for (int j = 0; j < side; j++)
                    if (j < across)
                        store(to + (i * width + j) * channels + c, row[j] + added);
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

/* taps: 9 registers, each a tap of LANES filters. */
INLINE void transform_one_register(matrix *m, int side, const lanes *taps, float *planes, long plane)
{
    lanes half[SIDES][3];
#pragma GCC unroll 3
    for (int j = 0; j < 3; j++) {
        lanes column[3] = {taps[j], taps[3 + j], taps[6 + j]}, turned[SIDES];
        m(column, turned);
#pragma GCC unroll 6
        for (int i = 0; i < side; i++)
            half[i][j] = turned[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < side; i++) {
        lanes turned[SIDES];
        m(half[i], turned);
#pragma GCC unroll 6
        for (int j = 0; j < side; j++)
            store(planes + (i * side + j) * plane, turned[j]);
    }
}

/* M g M' of the filters g of `columns` outputs, for inputs `from` to `to`, to rows of planes [in, columns]. Reads the
   filters in memory order, and the next turned ones ahead. m: side x 3. from, to: multiples of LANES. */
INLINE void filter_transform(matrix *m, int side, filter_shape f, const float *filters, long columns, long from,
                             long to, float *planes)
{
    long plane = filter_plane_of(f.in, columns);
    lanes taps[TAPS];
    if (f.turned) {
        for (long i = from; i < to; i++)
            for (long o = 0; o < columns; o += LANES) {
                const float *at = filters + o * TAPS + i * f.by_in;
                for (int next = 0; next < LANES * TAPS; next += LINE_FLOATS)
                    __builtin_prefetch(at + f.by_in + next);
#pragma GCC unroll 9
                for (int t = 0; t < TAPS; t++)
                    taps[t] = stride(at + TAPS - 1 - t, TAPS);
                transform_one_register(m, side, taps, planes + i * columns + o, plane);
            }
        return;
    }
    for (long o = 0; o < columns; o += LANES)
        for (long first = from; first < to; first += LANES) {
            float turned[LANES * TAPS * LANES]; /* [inputs, taps, outputs] */
            for (int t = 0; t < TAPS; t++)
                transpose(filters + o * f.by_out + first * TAPS + t * LANES, f.by_out, turned + t * LANES * LANES,
                          LANES);
            for (long i = 0; i < LANES; i++) {
#pragma GCC unroll 9
                for (int t = 0; t < TAPS; t++)
                    taps[t] = load(turned + (i * TAPS + t) * LANES);
                transform_one_register(m, side, taps, planes + (first + i) * columns + o, plane);
            }
        }
}

/* M u M' from planes u [in, columns] to the gradients of these filters, [columns, all, 3, 3], for the first `in` of
   `all` inputs. m: 3 x side. in: a multiple of LANES. */
INLINE void filter_gradient_transform(matrix *m, int side, long in, const float *planes, long columns, long all,
                                      float *gradients)
{
    long plane = filter_plane_of(in, columns);
    for (long o = 0; o < columns; o += LANES)
        for (long first = 0; first < in; first += LANES) {
            float turned[LANES * TAPS * LANES]; /* [inputs, taps, outputs] */
            for (long c = 0; c < LANES; c++) {
                lanes half[3][SIDES];
#pragma GCC unroll 6
                for (int j = 0; j < side; j++) {
                    lanes column[SIDES], sums[3];
#pragma GCC unroll 6
                    for (int i = 0; i < side; i++)
                        column[i] = load(planes + (i * side + j) * plane + (first + c) * columns + o);
                    m(column, sums);
#pragma GCC unroll 3
                    for (int i = 0; i < 3; i++)
                        half[i][j] = sums[i];
                }
#pragma GCC unroll 3
                for (int i = 0; i < 3; i++) {
                    lanes sums[3];
                    m(half[i], sums);
#pragma GCC unroll 3
                    for (int j = 0; j < 3; j++)
                        store(turned + (c * TAPS + i * 3 + j) * LANES, sums[j]);
                }
            }
            for (int t = 0; t < TAPS; t++)
                transpose(turned + t * LANES * LANES, LANES, gradients + (o * all + first) * TAPS + t * LANES,
                          all * TAPS);
        }
}

#endif
