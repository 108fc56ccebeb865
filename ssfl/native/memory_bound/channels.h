/* Gathers chosen rows and columns of float32 [rows, columns, inner] (the channels and filters that a mask keeps), and
   scatters them back with zeros elsewhere. Each value is read once and written once. */
#ifndef SSFL_CHANNELS_H
#define SSFL_CHANNELS_H

#include <stdint.h>

#define ALL (-1)

typedef struct {
    long count;        /* number of rows or columns */
    const int64_t *at; /* [chosen]: ascending indices */
    long chosen;       /* number of chosen ones, or ALL: then `at` is not read */
} choice;

typedef struct {
    choice rows, columns;
    long inner;
} slices;

static inline int choice_is_there(const choice *c)
{
    int64_t last = -1;
    int there = 1;
    for (long i = 0; i < c->chosen; i++) {
        there &= c->at[i] > last && c->at[i] < c->count;
        last = c->at[i];
    }
    return there;
}

/* Whether the indices ascend and are in range. */
static inline int slices_are_there(const slices *s) { return choice_is_there(&s->rows) && choice_is_there(&s->columns); }

#endif
