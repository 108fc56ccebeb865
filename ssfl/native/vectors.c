#include "vectors.h"
#include "lanes.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAS_EXPAND 1
#endif

#define STEP (4 * LANES) /* values of a sum in registers while the vectors pass by */

static long expand_plain(const uint8_t *mask, long size, const float *values, long kept, float *out)
{
    long next = 0;
    for (long i = 0; i < size; i++) {
        float pair[2] = {0, values[next < kept ? next : 0]};
        out[i] = pair[mask[i]];
        next += mask[i];
    }
    return next;
}

#ifdef HAS_EXPAND
__attribute__((target("avx512f,avx512bw,avx512vl"))) static long
expand_lanes(const uint8_t *mask, long size, const float *values, long kept, float *out)
{
    long i = 0, next = 0;
    /* A whole register is read at a time, so the last few values are left to the plain way. */
    for (; i + LANES <= size && next + LANES <= kept; i += LANES) {
        __mmask16 here = _mm_test_epi8_mask(_mm_loadu_si128((const void *)(mask + i)), _mm_set1_epi8(1));
        _mm512_storeu_ps(out + i, _mm512_maskz_expand_ps(here, _mm512_loadu_ps(values + next)));
        next += __builtin_popcount(here);
    }
    return next + expand_plain(mask + i, size - i, kept > next ? values + next : values, kept - next, out + i);
}
#endif

long expand(const uint8_t *mask, long size, const float *values, long kept, float *out)
{
    static const float none = 0;
    if (!kept)
        values = &none;
#ifdef HAS_EXPAND
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return expand_lanes(mask, size, values, kept, out);
#endif
    return expand_plain(mask, size, values, kept, out);
}

FOR_EVERY_PROCESSOR
void multiply_by_mask(const uint8_t *mask, long size, float *values)
{
    long i = 0;
    for (; i + LANES <= size; i += LANES)
        store(values + i, load(values + i) * __builtin_convertvector(from_bytes(mask + i), lanes));
    for (; i < size; i++)
        values[i] *= mask[i];
}

/* All vectors side by side: as many streams as there are vectors, and each is read once, from end to end. */
FOR_EVERY_PROCESSOR
void weighted_sum(const float *const *vectors, const float *weights, long count, long size, float *out)
{
    long i = 0;
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
