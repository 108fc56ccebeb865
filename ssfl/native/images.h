/* A minibatch from stored images: chosen rows, cropped, mirrored, normalised, in the order the network wants. */
#ifndef SSFL_IMAGES_H
#define SSFL_IMAGES_H

#include <stdint.h>

typedef struct {
    long count, channels, height, width;
    long padding;           /* zero pixels around an image that `offsets` count from */
    int last;               /* out is [count, height, width, channels] instead of [count, channels, height, width] */
    const int64_t *rows;    /* [count]: which image */
    const int64_t *offsets; /* [count, 2]: where the crop starts in the padded image; null: no crop */
    const uint8_t *flips;   /* [count]: 1 for a mirror image; null: none */
} image_batch;

/* Whether every row is one of `images` and every crop lies in the padded image. */
int batch_is_inside(const image_batch *b, long images);

/* source: bytes [N, channels, height, width]; table: [channels, 256], what each byte becomes. */
void gather_bytes(const image_batch *b, const uint8_t *source, const float *table, float *out);

/* source: float32 [N, channels, height, width]; out = (x - mean) / deviation, per channel; no crop, no mirror. */
void gather_floats(const image_batch *b, const float *source, const float *mean, const float *deviation, float *out);

#endif
