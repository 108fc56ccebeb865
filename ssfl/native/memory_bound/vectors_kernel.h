#ifndef SSFL_VECTORS_KERNEL_H
#define SSFL_VECTORS_KERNEL_H

/* Long vectors of float32, each read or written once, by at most `threads` threads (parallel.h). */
#include "../isa/pack.h"
#include "../parallel.h"

#define STEP (4 * LANES)    /* values of a sum that are in registers at once */
#define LEAST_VALUES 262144 /* minimum values of all vectors for a parallel region */

static long expand_one_by_one(const uint8_t *mask, long size, const float *values, long kept, float *out)
{
    long next = 0;
    for (long i = 0; i < size; i++) {
        float pair[2] = {0, values[next < kept ? next : 0]};
        out[i] = pair[mask[i]];
        next += mask[i];
    }
    return next;
}

/* The bits of LANES bytes that are 0 or 1. */
INLINE unsigned bits_of(const uint8_t *mask)
{
    unsigned bits = 0;
    for (int i = 0; i < LANES; i += 8) {
        uint64_t bytes;
        memcpy(&bytes, mask + i, sizeof bytes);
        bits |= (unsigned)(bytes * 0x0102040810204080u >> 56) << i;
    }
    return bits;
}

static long expand_some(const uint8_t *mask, long size, const float *values, long kept, float *out)
{
    long i = 0, next = 0;
    if (CAN_PACK) {
        lane_choice choices[256]; /* of eight lanes */
        for (unsigned bits = 0; LANES == 8 && bits < 256; bits++)
            choices[bits] = choice_of(bits);
        /* Reads whole registers, so the last few values are processed one by one below. */
        for (; i + LANES <= size && next + LANES <= kept; i += LANES) {
            unsigned bits = bits_of(mask + i);
            store(out + i, unpack_lanes(LANES == 8 ? choices[bits] : choice_of(bits), load(values + next)));
            next += __builtin_popcount(bits);
        }
    }
    return next + expand_one_by_one(mask + i, size - i, kept > next ? values + next : values, kept - next, out + i);
}

static long count_ones(const uint8_t *mask, long size)
{
    typedef uint8_t bytes __attribute__((vector_size(STEP)));
    long ones = 0, i = 0;
    while (i + STEP <= size) {
        bytes sums = {0};
        for (int k = 0; k < 255 && i + STEP <= size; k++, i += STEP) { /* at most 255 per byte counter */
            bytes some;
            memcpy(&some, mask + i, sizeof some);
            sums += some;
        }
        for (int j = 0; j < STEP; j++)
            ones += sums[j];
    }
    for (; i < size; i++)
        ones += mask[i];
    return ones;
}

static void multiply_some(const uint8_t *mask, long size, float *values)
{
    long i = 0;
    for (; i + LANES <= size; i += LANES)
        store(values + i, load(values + i) * __builtin_convertvector(from_bytes(mask + i), lanes));
    for (; i < size; i++)
        values[i] *= mask[i];
}

/* Sums all vectors at once; each is read once from start to end. */
static void sum_some(const float *const *vectors, const float *weights, long count, long from, long size, float *out)
{
    long i = from;
    for (; i + STEP <= size; i += STEP) {
        lanes sums[STEP / LANES];
        for (int j = 0; j < STEP / LANES; j++)
            sums[j] = weights[0] * load(vectors[0] + i + j * LANES);
        for (long k = 1; k < count; k++)
            for (int j = 0; j < STEP / LANES; j++)
                sums[j] += weights[k] * load(vectors[k] + i + j * LANES);
        for (int j = 0; j < STEP / LANES; j++)
            store(out + i + j * LANES, sums[j]);
    }
    for (; i < size; i++) {
        float sum = weights[0] * vectors[0][i];
        for (long k = 1; k < count; k++)
            sum += weights[k] * vectors[k][i];
        out[i] = sum;
    }
}

typedef struct {
    const uint8_t *mask;
    const float *const *vectors;
    const float *values, *weights;
    long count, size, kept, ones;
    float *out;
} vector_work;

/* Each part counts the ones before its range (reading bytes is faster than writing floats); the last part knows the
   total. */
static void expand_part(void *work, int index, int parts)
{
    vector_work *w = work;
    static const float none = 0;
    long from = part_begins(w->size, STEP, index, parts), to = part_begins(w->size, STEP, index + 1, parts);
    long before = count_ones(w->mask, from), kept = w->kept > before ? w->kept - before : 0;
    const float *values = kept ? w->values + before : &none;
    long ones = before + expand_some(w->mask + from, to - from, values, kept, w->out + from);
    if (index == parts - 1)
        w->ones = ones;
}

static void multiply_part(void *work, int index, int parts)
{
    const vector_work *w = work;
    long from = part_begins(w->size, STEP, index, parts), to = part_begins(w->size, STEP, index + 1, parts);
    multiply_some(w->mask + from, to - from, w->out + from);
}

static void sum_part(void *work, int index, int parts)
{
    const vector_work *w = work;
    long from = part_begins(w->size, STEP, index, parts), to = part_begins(w->size, STEP, index + 1, parts);
    sum_some(w->vectors, w->weights, w->count, from, to, w->out);
}

/* out[i] = the next of `values` where mask[i] is 1, else 0. mask: bytes 0 or 1. Returns the number of ones;
   if it is not `kept` (the number of values), `out` is invalid, but only `values` was read. */
static long expand(const uint8_t *mask, long size, const float *values, long kept, float *out, int threads)
{
    vector_work w = {.mask = mask, .values = values, .size = size, .kept = kept, .out = out};
    in_parts(parts_for(threads, size, LEAST_VALUES), expand_part, &w);
    return w.ones;
}

/* values[i] *= mask[i]; mask: bytes 0 or 1. */
static void multiply_by_mask(const uint8_t *mask, long size, float *values, int threads)
{
    vector_work w = {.mask = mask, .size = size, .out = values};
    in_parts(parts_for(threads, size, LEAST_VALUES), multiply_part, &w);
}

/* out[i] = weights[0] * vectors[0][i] + weights[1] * vectors[1][i] + ..., added in that order. */
static void weighted_sum(const float *const *vectors, const float *weights, long count, long size, float *out,
                         int threads)
{
    vector_work w = {.vectors = vectors, .weights = weights, .count = count, .size = size, .out = out};
    in_parts(parts_for(threads, (double)count * size, LEAST_VALUES), sum_part, &w);
}

#endif
