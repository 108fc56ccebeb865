/* One register of LANES float32. The including file defines LANES and compiles for a processor with such registers:
   the compiler would split longer vectors inside the loops, at many times the cost. */
#ifndef SSFL_SIMD_H
#define SSFL_SIMD_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Number of registers of the processor. */
#if LANES == 16 || defined(__aarch64__)
#define REGISTERS 32
#else
#define REGISTERS 16
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t lanes_int __attribute__((vector_size(4 * LANES)));
typedef uint8_t lanes_byte __attribute__((vector_size(LANES)));

INLINE lanes load(const float *from)
{
    lanes v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* Loads the first `count` lanes (at most LANES); the others are zero. */
INLINE lanes load_some(const float *from, long count)
{
    if (count >= LANES)
        return load(from);
    lanes v = {0};
    if (count > 0)
        memcpy(&v, from, count * sizeof *from);
    return v;
}

INLINE void store(float *to, lanes v) { memcpy(to, &v, sizeof v); }

/* value - 0 and not value + 0: it also keeps -0, so the compiler removes the operation. */
INLINE lanes splat(float value) { return value - (lanes){0}; }

/* x[at(0)], x[at(1)], ... */
#if LANES == 16
#define COLLECT(x, at)                                                                                              \
    ((lanes){x[at(0)], x[at(1)], x[at(2)], x[at(3)], x[at(4)], x[at(5)], x[at(6)], x[at(7)], x[at(8)], x[at(9)],   \
             x[at(10)], x[at(11)], x[at(12)], x[at(13)], x[at(14)], x[at(15)]})
#elif LANES == 8
#define COLLECT(x, at) ((lanes){x[at(0)], x[at(1)], x[at(2)], x[at(3)], x[at(4)], x[at(5)], x[at(6)], x[at(7)]})
#else
#define COLLECT(x, at) ((lanes){x[at(0)], x[at(1)], x[at(2)], x[at(3)]})
#endif

/* x[0], x[by], x[2 * by], ... */
INLINE lanes stride(const float *x, long by)
{
#define AT(i) (i) * by
    return COLLECT(x, AT);
#undef AT
}

/* where ? a : b per lane; `where` is the result of a comparison. */
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

/* Zero where a lane's magnitude is below `least`, which is not negative. */
INLINE lanes at_least(lanes v, float least)
{
    lanes zero = {0};
    return blend((v >= least) | (v <= -least), v, zero);
}

/* Selects lanes of a (indices 0 to LANES - 1) and b (from LANES on). */
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (lanes_int){__VA_ARGS__})
#endif

/* The values of a and b with even and with odd indices. */
INLINE void deinterleave(lanes a, lanes b, lanes *even, lanes *odd)
{
#if LANES == 16
    *even = SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *odd = SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif LANES == 8
    *even = SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
    *odd = SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
    *even = SHUFFLE(a, b, 0, 2, 4, 6);
    *odd = SHUFFLE(a, b, 1, 3, 5, 7);
#endif
}

/* even[0], odd[0], even[1], odd[1], ... */
INLINE void interleave(lanes even, lanes odd, lanes *first, lanes *second)
{
#if LANES == 16
    *first = SHUFFLE(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *second = SHUFFLE(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif LANES == 8
    *first = SHUFFLE(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
    *second = SHUFFLE(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    *first = SHUFFLE(even, odd, 0, 4, 1, 5);
    *second = SHUFFLE(even, odd, 2, 6, 3, 7);
#endif
}

INLINE void store_interleaved(float *to, lanes even, lanes odd)
{
    lanes first, second;
    interleave(even, odd, &first, &second);
    store(to, first);
    store(to + LANES, second);
}

/* Transposes LANES x LANES floats: rows from x with distance x_row, to y with distance y_row. */
INLINE void transpose(const float *x, long x_row, float *y, long y_row)
{
    lanes rows[2][LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        rows[0][i] = load(x + i * x_row);
#pragma GCC unroll 4
    for (int done = 1, from = 0; done < LANES; done *= 2, from = !from)
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++)
            interleave(rows[from][i], rows[from][i + LANES / 2], &rows[!from][2 * i], &rows[!from][2 * i + 1]);
    const int last = LANES == 8; /* three exchanges, otherwise two or four */
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        store(y + i * y_row, rows[last][i]);
}

/* The sum of a register's lanes, by adding halves repeatedly. */
INLINE float total(lanes v)
{
#if LANES == 16
    v += SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
#elif LANES == 8
    v += SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
#endif
    return (v[0] + v[2]) + (v[1] + v[3]);
}

/* Numbers below 256 as bytes. Uses intrinsics, because compilers convert lane by lane. */
INLINE lanes_byte to_bytes(lanes_int v)
{
#if defined(__x86_64__) && LANES == 16
    return (lanes_byte)_mm512_cvtepi32_epi8((__m512i)v);
#elif defined(__x86_64__) && LANES == 8
    __m256i all = (__m256i)v;
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    __m128i bytes = _mm_packus_epi16(words, words);
    lanes_byte out;
    memcpy(&out, &bytes, sizeof out);
    return out;
#elif defined(__x86_64__) && LANES == 4
    __m128i words = _mm_packs_epi32((__m128i)v, (__m128i)v), bytes = _mm_packus_epi16(words, words);
    lanes_byte out;
    memcpy(&out, &bytes, sizeof out);
    return out;
#else
    return __builtin_convertvector(v, lanes_byte);
#endif
}

INLINE lanes_int from_bytes(const uint8_t *at)
{
#if defined(__x86_64__) && LANES == 16
    return (lanes_int)_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)at));
#elif defined(__x86_64__) && LANES == 8
    return (lanes_int)_mm256_cvtepu8_epi32(_mm_loadu_si64(at));
#elif defined(__x86_64__) && LANES == 4
    __m128i zero = _mm_setzero_si128(), bytes = _mm_loadu_si32(at);
    return (lanes_int)_mm_unpacklo_epi16(_mm_unpacklo_epi8(bytes, zero), zero);
#else
    lanes_byte v;
    memcpy(&v, at, sizeof v);
    return __builtin_convertvector(v, lanes_int);
#endif
}

/* Keeps a value in a register; otherwise the compiler reads it from memory for every use. */
#if defined(__x86_64__) && defined(__GNUC__) && LANES == 16
#define HOLD(value) __asm__("" : "+v"(value))
#elif defined(__x86_64__) && defined(__GNUC__) && LANES == 8
#define HOLD(value) __asm__("" : "+x"(value))
#else
#define HOLD(value) (void)(value)
#endif

#endif
