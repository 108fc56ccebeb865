/* One register of float32. Who includes this says first how many fit, LANES, and compiles for a processor that has it:
   vectors longer than a processor's own would be taken apart, at many times the cost. */
#ifndef SSFL_WINOGRAD_REGISTERS_H
#define SSFL_WINOGRAD_REGISTERS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES)));

INLINE lanes load(const float *from)
{
    lanes v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store(float *to, lanes v) { memcpy(to, &v, sizeof v); }

/* Minus zero, not plus: that is the value itself, also of -0, so the compiler leaves it out. */
INLINE lanes splat(float value) { return value - (lanes){0}; }

/* x[0], x[by], x[2 * by], ... */
INLINE lanes stride(const float *x, long by)
{
#if LANES == 16
    return (lanes){x[0],      x[by],     x[2 * by],  x[3 * by],  x[4 * by],  x[5 * by],  x[6 * by],  x[7 * by],
                   x[8 * by], x[9 * by], x[10 * by], x[11 * by], x[12 * by], x[13 * by], x[14 * by], x[15 * by]};
#elif LANES == 8
    return (lanes){x[0], x[by], x[2 * by], x[3 * by], x[4 * by], x[5 * by], x[6 * by], x[7 * by]};
#else
    return (lanes){x[0], x[by], x[2 * by], x[3 * by]};
#endif
}

/* Keeps a value in a register; the compiler would rather read it from memory again for every use. */
#if LANES == 16
#define HOLD(value) __asm__("" : "+v"(value))
#elif LANES == 8
#define HOLD(value) __asm__("" : "+x"(value))
#else
#define HOLD(value) (void)(value)
#endif

#endif
