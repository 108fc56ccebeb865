/* Selecting values of a vector: the largest of its segments, and those on a mask.
 *
 * The largest are found by radix selection on the bits of the floats, most significant digits first.
 * A float32 becomes an unsigned integer of the same order; histograms of 11, 11 and 10 bits of it find the keep-th
 * largest in three passes, whose time hardly depends on the values. Values on a mask take one pass without a branch.
 * Nothing here depends on the instruction set. */
#pragma once

#include <stdint.h>
#include <string.h>

typedef struct {
    long begin, end, keep; /* the `keep` largest of values[begin .. end) */
} selection;

static inline uint32_t order_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = bits == 0x80000000u ? 0 : bits; /* -0 equals 0 */
    return bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u); /* without a branch: signs are not predictable */
}

static inline int any_nan(const float *values, long size)
{
    int found = 0;
    for (long i = 0; i < size; i++)
        found |= values[i] != values[i];
    return found;
}

/* The digit of the keep-th largest among the values whose digits so far are `prefix`; *keep becomes its rank there. */
static uint32_t next_digit(const float *values, long size, uint32_t prefix, int known, int digits, long *keep)
{
    uint32_t counts[2048] = {0};
    int shift = 32 - known - digits;
    for (long i = 0; i < size; i++) {
        uint32_t order = order_of(values[i]);
        if (known == 0 || order >> (32 - known) == prefix)
            counts[(order >> shift) & ((1u << digits) - 1)]++;
    }
    uint32_t digit = (1u << digits) - 1;
    while (counts[digit] < (uint32_t)*keep)
        *keep -= counts[digit--];
    return prefix << digits | digit;
}

/* out = 1 at the `keep` largest of a segment, equal ones by lower index, else 0. */
static void select_largest(const float *values, long size, long keep, uint8_t *out)
{
    if (keep <= 0 || keep >= size) {
        memset(out, keep > 0, (size_t)size);
        return;
    }
    uint32_t least = next_digit(values, size, 0, 0, 11, &keep);
    least = next_digit(values, size, least, 11, 11, &keep);
    least = next_digit(values, size, least, 22, 10, &keep);
    for (long i = 0; i < size; i++) {
        uint32_t order = order_of(values[i]);
        out[i] = order > least;
        if (order == least) /* seldom, unlike the other */
            out[i] = keep-- > 0;
    }
}

/* For every segment; returns 0, and writes nothing, if a value is NaN. */
static int select_segments(const float *values, const selection *segments, long count, uint8_t *out)
{
    for (long i = 0; i < count; i++)
        if (any_nan(values + segments[i].begin, segments[i].end - segments[i].begin))
            return 0;
    for (long i = 0; i < count; i++) {
        long begin = segments[i].begin;
        select_largest(values + begin, segments[i].end - begin, segments[i].keep, out + begin);
    }
    return 1;
}

/* The values[i] with mask[i] == 1, in order; `kept` is their number. */
static void pack_masked(const uint8_t *mask, long size, const float *values, long kept, float *out)
{
    long found = 0;
    for (long i = 0; i < size && found < kept; i++) {
        out[found] = values[i]; /* overwritten by the next one if the mask is 0 here */
        found += mask[i];
    }
}
