/* Packs chosen lanes of a register to its first lanes, and unpacks them to their places with zeros elsewhere. */
#ifndef SSFL_ISA_PACK_H
#define SSFL_ISA_PACK_H

#include "simd.h"

#if defined(__x86_64__) && LANES >= 8
#define CAN_PACK 1
#else
#define CAN_PACK 0 /* values are moved one by one */
#endif

/* A set of chosen lanes as the instructions read it: one bit per lane (AVX-512), or one byte per lane (AVX2). */
typedef struct {
    uint64_t packed, unpacked;
} lane_choice;

#if LANES == 16
INLINE lane_choice choice_of(unsigned bits) { return (lane_choice){bits, bits}; }
#else
/* packed: indices of the chosen lanes, in order; unpacked: the index of the value for each lane, -1 for none. */
INLINE lane_choice choice_of(unsigned bits)
{
    lane_choice c = {0, 0};
    for (int lane = 0, next = 0; lane < 8; lane++) {
        int chosen = bits >> lane & 1;
        c.unpacked |= (uint64_t)(chosen ? next : 0xff) << 8 * lane;
        if (chosen)
            c.packed |= (uint64_t)lane << 8 * next++;
    }
    return c;
}
#endif

#if CAN_PACK && LANES == 16
INLINE lanes pack_lanes(lane_choice c, lanes v) { return (lanes)_mm512_maskz_compress_ps(c.packed, (__m512)v); }

INLINE lanes unpack_lanes(lane_choice c, lanes v) { return (lanes)_mm512_maskz_expand_ps(c.unpacked, (__m512)v); }
#elif CAN_PACK
INLINE __m256i spread_bytes(uint64_t bytes) { return _mm256_cvtepi8_epi32(_mm_cvtsi64_si128((long long)bytes)); }

INLINE lanes pack_lanes(lane_choice c, lanes v)
{
    return (lanes)_mm256_permutevar8x32_ps((__m256)v, spread_bytes(c.packed));
}

INLINE lanes unpack_lanes(lane_choice c, lanes v)
{
    __m256i from = spread_bytes(c.unpacked);
    return (lanes)_mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(from, 31)),
                                   _mm256_permutevar8x32_ps((__m256)v, from));
}
#else
INLINE lanes pack_lanes(lane_choice c, lanes v) { return (void)c, v; }

INLINE lanes unpack_lanes(lane_choice c, lanes v) { return (void)c, v; }
#endif

#endif
