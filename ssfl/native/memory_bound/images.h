/* A minibatch from stored images: selected, cropped, mirrored, normalised, in the network's memory format. */
#ifndef SSFL_IMAGES_H
#define SSFL_IMAGES_H

#include <stdint.h>

typedef struct {
    long count, channels, height, width;
    long padding;           /* zero pixels around an image that `offsets` count from */
    int last;               /* out is [count, height, width, channels] instead of [count, channels, height, width] */
    const int64_t *rows;    /* [count]: index of the image */
    const int64_t *offsets; /* [count, 2]: start of the crop in the padded image; null: no crop */
    const uint8_t *flips;   /* [count]: 1 for a mirror image; null: none */
} image_batch;

/* Whether every row is below `images` and every crop is inside the padded image. */
static inline int batch_is_inside(const image_batch *b, long images)
{
    int inside = 1;
    for (long n = 0; n < b->count; n++)
        inside &= b->rows[n] >= 0 && b->rows[n] < images;
    for (long n = 0; b->offsets && n < 2 * b->count; n++)
        inside &= b->offsets[n] >= 0 && b->offsets[n] <= 2 * b->padding;
    return inside;
}

#endif
