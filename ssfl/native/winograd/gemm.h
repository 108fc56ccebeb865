/* Products of small matrices whose result stays in registers while it is summed. */
#ifndef SSFL_WINOGRAD_GEMM_H
#define SSFL_WINOGRAD_GEMM_H

#include "../isa/simd.h"

/* The part of a result that is summed in registers at once: ROWS x WIDE registers, plus WIDE for b. */
#define ROWS 6
#if REGISTERS == 32
#define WIDE 4
#else
#define WIDE 2
#endif

/* a[row, k] = at[row * by_row + k * by_depth] */
typedef struct {
    const float *at;
    long by_row, by_depth;
} left_matrix;

/* result[rows, wide] (+)= a[rows, depth] b[depth, wide]; rows and wide (in registers) are constants. Earlier results
   are added at the end: sums of sums have smaller rounding errors than one long sum. */
INLINE void gemm_microkernel(int rows, int wide, long depth, left_matrix a, const float *b, int add, float *result)
{
    const long columns = wide * LANES;
    lanes sums[ROWS][WIDE];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < wide; v++)
            sums[r][v] = splat(0);
    for (long k = 0; k < depth; k++) {
        lanes right[WIDE];
#pragma GCC unroll 4
        for (int v = 0; v < wide; v++) {
            right[v] = load(b + k * columns + v * LANES);
            HOLD(right[v]);
        }
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            lanes left = splat(a.at[r * a.by_row + k * a.by_depth]);
#pragma GCC unroll 4
            for (int v = 0; v < wide; v++)
                sums[r][v] += left * right[v];
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < wide; v++)
            store(result + r * columns + v * LANES,
                  add ? load(result + r * columns + v * LANES) + sums[r][v] : sums[r][v]);
}

/* Computes groups of `rows` rows from `row` on, as long as complete groups remain. Returns the next row. */
INLINE long rows_product(int rows, int wide, long row, long count, long depth, left_matrix a, const float *b, int add,
                         float *result)
{
    for (; row + rows <= count; row += rows) {
        left_matrix own = {a.at + row * a.by_row, a.by_row, a.by_depth};
        gemm_microkernel(rows, wide, depth, own, b, add, result + row * wide * LANES);
    }
    return row;
}

INLINE void wide_product(int wide, long count, long depth, left_matrix a, const float *b, int add, float *result)
{
    long row = rows_product(ROWS, wide, 0, count, depth, a, b, add, result);
    row = rows_product(4, wide, row, count, depth, a, b, add, result);
    row = rows_product(2, wide, row, count, depth, a, b, add, result);
    rows_product(1, wide, row, count, depth, a, b, add, result);
}

/* result[count, columns] (+)= a[count, depth] b[depth, columns]; columns: 1 to WIDE registers. */
INLINE void product(long count, long depth, left_matrix a, const float *b, long columns, int add, float *result)
{
    if (columns == LANES)
        wide_product(1, count, depth, a, b, add, result);
    else if (columns == 2 * LANES)
        wide_product(2, count, depth, a, b, add, result);
#if WIDE == 4
    else if (columns == 3 * LANES)
        wide_product(3, count, depth, a, b, add, result);
    else
        wide_product(4, count, depth, a, b, add, result);
#endif
}

#endif
