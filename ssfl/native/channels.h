/* Chosen rows and columns of [rows, columns, inner] float32 side by side, and back among zeros: the channels and filters
   that a mask has left. Each value is read once and written once. */
#ifndef SSFL_CHANNELS_H
#define SSFL_CHANNELS_H

#include <stdint.h>

#define ALL (-1)

typedef struct {
    long count;        /* of the whole */
    const int64_t *at; /* [chosen]: numbers, ascending */
    long chosen;       /* or ALL, in order: then `at` is not read */
} choice;

typedef struct {
    choice rows, columns;
    long inner;
} slices;

/* Whether the numbers ascend and are those of rows and columns that are there. */
int slices_are_there(const slices *s);

/* x [rows, columns, inner] to its chosen slices, out [rows chosen, columns chosen, inner]; with registers of at most so
   many bits, as far as the processor has them. Returns 0 where there is no memory to work in. */
int gather_slices(const slices *s, int bits, const float *x, float *out);

/* The other way: x [rows chosen, columns chosen, inner] to out [rows, columns, inner], zero elsewhere. */
int scatter_slices(const slices *s, int bits, const float *x, float *out);

#endif
