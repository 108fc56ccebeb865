/* Sixteen float32 at a time, on any processor: the compiler turns a vector into what the target has. */
#ifndef SSFL_LANES_H
#define SSFL_LANES_H

#include <stdint.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

/* One version of a function per instruction set, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

typedef float lanes __attribute__((vector_size(64)));
typedef int32_t lanes_int __attribute__((vector_size(64)));
typedef uint8_t lanes_byte __attribute__((vector_size(16)));

INLINE lanes load(const float *from)
{
    lanes v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* x[at[0]], x[at[1]], ...: built in a register, since a vector read from 16 separate writes would wait for them. */
INLINE lanes pick(const float *x, const int32_t *at)
{
    return (lanes){x[at[0]], x[at[1]], x[at[2]],  x[at[3]],  x[at[4]],  x[at[5]],  x[at[6]],  x[at[7]],
                   x[at[8]], x[at[9]], x[at[10]], x[at[11]], x[at[12]], x[at[13]], x[at[14]], x[at[15]]};
}

INLINE void store(float *to, lanes v) { memcpy(to, &v, sizeof v); }

INLINE lanes splat(float value)
{
    lanes v = {0};
    return v + value;
}

/* where ? a : b, lane by lane; `where` comes from a comparison. */
INLINE lanes blend(lanes_int where, lanes a, lanes b)
{
    return (lanes)((where & (lanes_int)a) | (~where & (lanes_int)b));
}

/* Zero where a lane is negative or -0; NaN stays NaN. */
INLINE lanes relu(lanes v)
{
    lanes zero = {0};
    return blend(v <= zero, zero, v);
}

INLINE float total(lanes v)
{
    float sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += v[i];
    return sum;
}

INLINE lanes_byte to_bytes(lanes_int v) { return __builtin_convertvector(v, lanes_byte); }

INLINE lanes_int from_bytes(const uint8_t *at)
{
    lanes_byte v;
    memcpy(&v, at, sizeof v);
    return __builtin_convertvector(v, lanes_int);
}

#endif
