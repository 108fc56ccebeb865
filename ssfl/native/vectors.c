#include "vectors.h"
#include "lanes.h"
#include "parallel.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAS_EXPAND 1
#endif

#define STEP (4 * LANES) /* values of a sum in registers while the vectors pass by */
#define LEAST_VALUES 262144 /* that are worth a region, once all vectors' are counted */

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

static long expand_some(const uint8_t *mask, long size, const float *values, long kept, float *out)
{
#ifdef HAS_EXPAND
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return expand_lanes(mask, size, values, kept, out);
#endif
    return expand_plain(mask, size, values, kept, out);
}

FOR_EVERY_PROCESSOR
long count_ones(const uint8_t *mask, long size)
{
    typedef uint8_t bytes __attribute__((vector_size(STEP)));
    long ones = 0, i = 0;
    while (i + STEP <= size) {
        bytes sums = {0};
        for (int k = 0; k < 255 && i + STEP <= size; k++, i += STEP) { /* as many as a byte can count */
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

FOR_EVERY_PROCESSOR
void multiply_some(const uint8_t *mask, long size, float *values)
{
    long i = 0;
    for (; i + LANES <= size; i += LANES)
        store(values + i, load(values + i) * __builtin_convertvector(from_bytes(mask + i), lanes));
    for (; i < size; i++)
        values[i] *= mask[i];
}

/* All vectors side by side: as many streams as there are vectors, and each is read once, from end to end. */
FOR_EVERY_PROCESSOR
void sum_some(const float *const *vectors, const float *weights, long count, long from, long size, float *out)
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

/* Each part counts the values before its own: bytes, read faster than floats are written. The last one has counted
   all of them. */
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

long expand(const uint8_t *mask, long size, const float *values, long kept, float *out, int threads)
{
    vector_work w = {.mask = mask, .values = values, .size = size, .kept = kept, .out = out};
    in_parts(parts_for(threads, size, LEAST_VALUES), expand_part, &w);
    return w.ones;
}

void multiply_by_mask(const uint8_t *mask, long size, float *values, int threads)
{
    vector_work w = {.mask = mask, .size = size, .out = values};
    in_parts(parts_for(threads, size, LEAST_VALUES), multiply_part, &w);
}

void weighted_sum(const float *const *vectors, const float *weights, long count, long size, float *out, int threads)
{
    vector_work w = {.vectors = vectors, .weights = weights, .count = count, .size = size, .out = out};
    in_parts(parts_for(threads, (double)count * size, LEAST_VALUES), sum_part, &w);
}
