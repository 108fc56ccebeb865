#ifndef SSFL_CHANNELS_KERNEL_H
#define SSFL_CHANNELS_KERNEL_H

#include "../isa/pack.h"
#include "channels.h"

/* The columns of one register: which are chosen, and how many were chosen before them. */
typedef struct {
    lane_choice chosen;
    long before;
} column_block;

/* How to process a row. */
typedef struct {
    choice columns;
    long inner;
    column_block *blocks; /* if inner is 1 and registers can be packed; else null */
    long count;
} row_plan;

INLINE long chosen_of(const choice *c) { return c->chosen == ALL ? c->count : c->chosen; }

/* A 3x3 filter has nine values; the copy is faster with a constant size. */
INLINE void copy(float *to, const float *from, long inner)
{
    if (inner == 9)
        memcpy(to, from, 9 * sizeof(float));
    else if (inner == 1)
        *to = *from;
    else
        memcpy(to, from, inner * sizeof(float));
}

static void gather_row(const row_plan *p, const float *x, float *out)
{
    const choice *c = &p->columns;
    if (c->chosen == ALL)
        memcpy(out, x, p->inner * sizeof(float));
    for (long i = 0; i < c->chosen; i++)
        copy(out + i * p->inner, x + c->at[i] * p->inner, p->inner);
}

static void scatter_row(const row_plan *p, const float *x, float *out)
{
    const choice *c = &p->columns;
    memset(out, 0, c->chosen == ALL ? 0 : c->count * p->inner * sizeof(float));
    if (c->chosen == ALL)
        memcpy(out, x, p->inner * sizeof(float));
    for (long i = 0; i < c->chosen; i++)
        copy(out + c->at[i] * p->inner, x + i * p->inner, p->inner);
}

/* The same with whole registers, for rows after which at least one more register may be read and written. Values
   written beyond the end belong to later rows, which overwrite them. */
static void gather_row_packed(const row_plan *p, const float *x, float *out)
{
    for (long b = 0; b < p->count; b++)
        store(out + p->blocks[b].before, pack_lanes(p->blocks[b].chosen, load(x + b * LANES)));
}

static void scatter_row_packed(const row_plan *p, const float *x, float *out)
{
    for (long b = 0; b < p->count; b++)
        store(out + b * LANES, unpack_lanes(p->blocks[b].chosen, load(x + p->blocks[b].before)));
}

static void fill_blocks(const choice *c, column_block *blocks, long count)
{
    long next = 0;
    for (long b = 0; b < count; b++) {
        long first = b * LANES, before = next;
        unsigned chosen = 0;
        for (; next < c->chosen && c->at[next] < first + LANES; next++)
            chosen |= 1u << (c->at[next] - first);
        blocks[b] = (column_block){choice_of(chosen), before};
    }
}

/* Returns 0 if memory cannot be allocated. The caller frees p->blocks. */
static int plan_row(const slices *s, row_plan *p)
{
    *p = (row_plan){.columns = s->columns, .inner = s->inner};
    if (s->columns.chosen == ALL) { /* as one long column */
        p->inner *= s->columns.count;
        p->columns.count = 1;
    } else if (CAN_PACK && s->inner == 1) {
        p->count = (s->columns.count + LANES - 1) / LANES;
        p->blocks = malloc((p->count + 1) * sizeof *p->blocks);
        if (!p->blocks)
            return 0;
        fill_blocks(&s->columns, p->blocks, p->count);
    }
    return 1;
}

/* Copies the chosen slices of x [rows, columns, inner] to out [rows chosen, columns chosen, inner]. */
static int gather_slices(const slices *s, const float *x, float *out)
{
    row_plan p;
    if (!plan_row(s, &p))
        return 0;
    long whole = s->columns.count * s->inner, part = chosen_of(&s->columns) * s->inner, rows = chosen_of(&s->rows);
    for (long r = 0; r < rows; r++) {
        long at = s->rows.chosen == ALL ? r : s->rows.at[r];
        int roomy = (s->rows.count - at - 1) * whole >= LANES && (rows - r - 1) * part >= LANES;
        if (p.blocks && roomy)
            gather_row_packed(&p, x + at * whole, out + r * part);
        else
            gather_row(&p, x + at * whole, out + r * part);
    }
    free(p.blocks);
    return 1;
}

/* The inverse: x [rows chosen, columns chosen, inner] to out [rows, columns, inner], zero elsewhere. */
static int scatter_slices(const slices *s, const float *x, float *out)
{
    row_plan p;
    if (!plan_row(s, &p))
        return 0;
    long whole = s->columns.count * s->inner, part = chosen_of(&s->columns) * s->inner, rows = chosen_of(&s->rows);
    long next = 0;
    for (long r = 0; r < s->rows.count; r++) {
        if (next == rows || (s->rows.chosen != ALL && s->rows.at[next] != r)) {
            memset(out + r * whole, 0, whole * sizeof(float));
            continue;
        }
        int roomy = (s->rows.count - r - 1) * whole >= LANES && (rows - next - 1) * part >= LANES;
        if (p.blocks && roomy)
            scatter_row_packed(&p, x + next++ * part, out + r * whole);
        else
            scatter_row(&p, x + next++ * part, out + r * whole);
    }
    free(p.blocks);
    return 1;
}

#endif
