/* Long vectors of float32, each read or written once, by at most `threads` threads (parallel.h). */
#ifndef SSFL_VECTORS_H
#define SSFL_VECTORS_H

#include <stdint.h>

/* out[i] = the next of `values` where mask[i] is 1, else 0. mask: bytes 0 or 1. Returns its ones: where they are not
   `kept`, the number of values, `out` means nothing, though nothing beyond them was read. */
long expand(const uint8_t *mask, long size, const float *values, long kept, float *out, int threads);

/* values[i] *= mask[i]; mask: bytes 0 or 1. */
void multiply_by_mask(const uint8_t *mask, long size, float *values, int threads);

/* out[i] = weights[0] * vectors[0][i] + weights[1] * vectors[1][i] + ..., added in that order. */
void weighted_sum(const float *const *vectors, const float *weights, long count, long size, float *out,
                  int threads);

#endif
