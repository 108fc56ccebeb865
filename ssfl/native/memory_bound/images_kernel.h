#ifndef SSFL_IMAGES_KERNEL_H
#define SSFL_IMAGES_KERNEL_H

#include "../isa/simd.h"
#include "images.h"

INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long most(long a, long b) { return a > b ? a : b; }

/* One row of a plane. step: 1, or -1 for a mirror image; first: the stored column of output column 0. */
INLINE void one_row(const uint8_t *row, long width, long first, long step, const float *values, float *out,
                    long pixel)
{
    long from = row ? most(0, step > 0 ? -first : first - width + 1) : width;
    long to = row ? least(width, step > 0 ? width - first : first + 1) : width;
    long j = 0;
    for (; j < least(from, width); j++)
        out[j * pixel] = values[0];
    for (; j < to; j++)
        out[j * pixel] = values[row[first + step * j]];
    for (; j < width; j++)
        out[j * pixel] = values[0];
}

static void one_image(const image_batch *b, const uint8_t *from, long top, long left, int mirrored,
                      const float *table, float *out)
{
    long h = b->height, w = b->width, pixel = b->last ? b->channels : 1;
    long first = mirrored ? w - 1 + left : left, step = mirrored ? -1 : 1;
    for (long c = 0; c < b->channels; c++) {
        float *to = b->last ? out + c : out + c * h * w;
        for (long i = 0; i < h; i++, to += w * pixel) {
            long at = i + top;
            const uint8_t *row = at >= 0 && at < h ? from + (c * h + at) * w : 0;
            one_row(row, w, first, step, table + c * 256, to, pixel);
        }
    }
}

/* source: bytes [N, channels, height, width]; table: [channels, 256], the output for each byte. */
static void gather_bytes(const image_batch *b, const uint8_t *source, const float *table, float *out)
{
    long size = b->channels * b->height * b->width;
    for (long n = 0; n < b->count; n++) {
        long top = b->offsets ? b->offsets[2 * n] - b->padding : 0;
        long left = b->offsets ? b->offsets[2 * n + 1] - b->padding : 0;
        one_image(b, source + b->rows[n] * size, top, left, b->flips && b->flips[n], table, out + n * size);
    }
}

/* source: float32 [N, channels, height, width]; out = (x - mean) / deviation, per channel; no crop, no mirror. */
static void gather_floats(const image_batch *b, const float *source, const float *mean, const float *deviation,
                          float *out)
{
    long pixels = b->height * b->width, size = b->channels * pixels, channels = b->channels;
    for (long n = 0; n < b->count; n++) {
        const float *from = source + b->rows[n] * size;
        for (long c = 0; c < channels; c++)
            if (b->last)
                for (long p = 0; p < pixels; p++)
                    out[n * size + p * channels + c] = (from[c * pixels + p] - mean[c]) / deviation[c];
            else
                for (long p = 0; p < pixels; p++)
                    out[n * size + c * pixels + p] = (from[c * pixels + p] - mean[c]) / deviation[c];
    }
}

#endif
