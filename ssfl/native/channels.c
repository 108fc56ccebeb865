#include "channels.h"

#include <stdlib.h>
#include <string.h>

#include "lanes.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAS_EXPAND 1
#endif

/* Sixteen columns of a row: which of them are chosen, and how many were before. */
typedef struct {
    uint16_t chosen, side_by_side, there; /* a bit a column; side_by_side: as many of the lowest as are chosen */
    int32_t before;
} column_block;

/* How to go through a row. */
typedef struct {
    choice columns;
    long inner;
    column_block *blocks; /* where inner is 1 and the processor can expand a register; else null */
    long count;
} row_plan;

INLINE long chosen_of(const choice *c) { return c->chosen == ALL ? c->count : c->chosen; }

static int choice_is_there(const choice *c)
{
    int64_t last = -1;
    int there = 1;
    for (long i = 0; i < c->chosen; i++) {
        there &= c->at[i] > last && c->at[i] < c->count;
        last = c->at[i];
    }
    return there;
}

int slices_are_there(const slices *s) { return choice_is_there(&s->rows) && choice_is_there(&s->columns); }

/* A 3x3 filter has nine values: so few are copied faster where the compiler knows the number. */
INLINE void copy(float *to, const float *from, long inner)
{
    if (inner == 9)
        memcpy(to, from, 9 * sizeof(float));
    else if (inner == 1)
        *to = *from;
    else
        memcpy(to, from, inner * sizeof(float));
}

static void gather_row_plain(const row_plan *p, const float *x, float *out)
{
    const choice *c = &p->columns;
    if (c->chosen == ALL)
        memcpy(out, x, p->inner * sizeof(float));
    for (long i = 0; i < c->chosen; i++)
        copy(out + i * p->inner, x + c->at[i] * p->inner, p->inner);
}

static void scatter_row_plain(const row_plan *p, const float *x, float *out)
{
    const choice *c = &p->columns;
    memset(out, 0, c->chosen == ALL ? 0 : c->count * p->inner * sizeof(float));
    if (c->chosen == ALL)
        memcpy(out, x, p->inner * sizeof(float));
    for (long i = 0; i < c->chosen; i++)
        copy(out + c->at[i] * p->inner, x + i * p->inner, p->inner);
}

#ifdef HAS_EXPAND
#define WITH_EXPAND __attribute__((target("avx512f,avx512bw,avx512vl")))

/* roomy: a register more than a row may be read and written. Masks keep the others inside; they would make the memory
   half as fast, so they are for the last rows only. What is written too much belongs to rows that come later. */
WITH_EXPAND static void gather_row_lanes(const row_plan *p, const float *x, float *out, int roomy)
{
    for (long b = 0; b < p->count; b++) {
        column_block at = p->blocks[b];
        if (roomy) {
            __m512 values = _mm512_loadu_ps(x + b * LANES);
            _mm512_storeu_ps(out + at.before, _mm512_maskz_compress_ps(at.chosen, values));
        } else {
            __m512 values = _mm512_maskz_loadu_ps(at.chosen, x + b * LANES);
            _mm512_mask_storeu_ps(out + at.before, at.side_by_side, _mm512_maskz_compress_ps(at.chosen, values));
        }
    }
}

WITH_EXPAND static void scatter_row_lanes(const row_plan *p, const float *x, float *out, int roomy)
{
    for (long b = 0; b < p->count; b++) {
        column_block at = p->blocks[b];
        if (roomy) {
            __m512 values = _mm512_loadu_ps(x + at.before);
            _mm512_storeu_ps(out + b * LANES, _mm512_maskz_expand_ps(at.chosen, values));
        } else {
            __m512 values = _mm512_maskz_loadu_ps(at.side_by_side, x + at.before);
            _mm512_mask_storeu_ps(out + b * LANES, at.there, _mm512_maskz_expand_ps(at.chosen, values));
        }
    }
}

static int has_expand(void) { return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"); }
#else
#define gather_row_lanes(p, x, out, roomy) ((void)(roomy), gather_row_plain(p, x, out))
#define scatter_row_lanes(p, x, out, roomy) ((void)(roomy), scatter_row_plain(p, x, out))

static int has_expand(void) { return 0; }
#endif

static void fill_blocks(const choice *c, column_block *blocks, long count)
{
    long next = 0;
    for (long b = 0; b < count; b++) {
        long first = b * LANES, left = c->count - first, before = next;
        unsigned chosen = 0;
        for (; next < c->chosen && c->at[next] < first + LANES; next++)
            chosen |= 1u << (c->at[next] - first);
        blocks[b] = (column_block){.chosen = (uint16_t)chosen,
                                   .side_by_side = (uint16_t)((1u << (next - before)) - 1),
                                   .there = (uint16_t)(left < LANES ? (1u << left) - 1 : 0xffff),
                                   .before = (int32_t)before};
    }
}

/* Returns 0 where there is no memory. What it takes is freed by the caller. */
static int plan_row(const slices *s, int bits, row_plan *p)
{
    *p = (row_plan){.columns = s->columns, .inner = s->inner};
    if (s->columns.chosen == ALL) { /* as one long column */
        p->inner *= s->columns.count;
        p->columns.count = 1;
    } else if (s->inner == 1 && bits >= 512 && has_expand()) {
        p->count = (s->columns.count + LANES - 1) / LANES;
        p->blocks = malloc((p->count + 1) * sizeof *p->blocks);
        if (!p->blocks)
            return 0;
        fill_blocks(&s->columns, p->blocks, p->count);
    }
    return 1;
}

int gather_slices(const slices *s, int bits, const float *x, float *out)
{
    row_plan p;
    if (!plan_row(s, bits, &p))
        return 0;
    long whole = s->columns.count * s->inner, part = chosen_of(&s->columns) * s->inner, rows = chosen_of(&s->rows);
    for (long r = 0; r < rows; r++) {
        long at = s->rows.chosen == ALL ? r : s->rows.at[r];
        int roomy = (s->rows.count - at - 1) * whole >= LANES && (rows - r - 1) * part >= LANES;
        if (p.blocks)
            gather_row_lanes(&p, x + at * whole, out + r * part, roomy);
        else
            gather_row_plain(&p, x + at * whole, out + r * part);
    }
    free(p.blocks);
    return 1;
}

int scatter_slices(const slices *s, int bits, const float *x, float *out)
{
    row_plan p;
    if (!plan_row(s, bits, &p))
        return 0;
    long whole = s->columns.count * s->inner, part = chosen_of(&s->columns) * s->inner, rows = chosen_of(&s->rows);
    long next = 0;
    for (long r = 0; r < s->rows.count; r++) {
        if (next == rows || (s->rows.chosen != ALL && s->rows.at[next] != r)) {
            memset(out + r * whole, 0, whole * sizeof(float));
            continue;
        }
        int roomy = (s->rows.count - r - 1) * whole >= LANES && (rows - next - 1) * part >= LANES;
        if (p.blocks)
            scatter_row_lanes(&p, x + next++ * part, out + r * whole, roomy);
        else
            scatter_row_plain(&p, x + next++ * part, out + r * whole);
    }
    free(p.blocks);
    return 1;
}
