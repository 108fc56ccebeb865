/* Minimal filtering: few products of sums of inputs and sums of filter taps, whose sums are the outputs.

   In one dimension each scheme multiplies planes of inputs and of filters and adds the products to planes of results;
   in two dimensions it is applied to rows and to columns.

   stride_1: two outputs cost 4 products instead of 6. With the matrices A, B, G of Lavin and Gray, section 4.1,
   outputs are A' [(G g G') * (B' d B)] A, so the gradient of the filters is G' [(A dy A') * (B' d B)] G. The images'
   gradient is the convolution of the outputs' gradients with turned filters.

   large: four outputs cost 6 products instead of 12. The matrices are those of Toom and Cook for the points 0, 3/4,
   -3/4, 3/2, -3/2 and infinity, in Lavin and Gray's notation. Rounding errors are smaller than with the usual points 0,
   1, -1, 2, -2 and infinity: the factors are closer to each other, and those of A and B are exact in float32.

   stride_2: outputs are y[o] = g0 x[2o-1] + g1 x[2o] + g2 x[2o+1]. Inputs with odd indices make a convolution with two
   taps, whose two outputs cost 3 products instead of 4; inputs with even indices are multiplied by g1: 5 instead of 6.
   Images' gradients (spread): dx[2o] = g1 dy[o] and dx[2o+1] = g2 dy[o] + g0 dy[o+1], again 5 products for two dy. All
   factors are 1 or -1. */
#ifndef SSFL_WINOGRAD_SCHEMES_H
#define SSFL_WINOGRAD_SCHEMES_H

#include "transforms.h"

#define TERMS 6 /* most terms of one dimension */

typedef void window_function(tile_range r, long from, long to, const float *map, long channel, long columns,
                             float least, const float *zeros, float *planes);
typedef void tile_function(tile_range r, const float *planes, long channel, long columns, const float *bias,
                           float *map);
typedef void filter_function(filter_shape f, const float *filters, long columns, long from, long to, float *planes);
typedef void filter_gradient_function(long in, const float *planes, long columns, long all, float *gradients);

typedef struct {
    int count; /* of the terms of one dimension */
    struct {
        int input, filter, result; /* planes; the first term of a plane of filters or results precedes the others */
    } terms[TERMS];
    int inputs, filters, results; /* number of planes of one dimension */
    window_function *input_transform;
    filter_function *filter_transform;
    tile_function *result_transform;
    /* For the filters' gradients: the gradients of results, and inputs without small entries. */
    window_function *gradient_transform, *pruned_transform;
    filter_gradient_function *filter_gradient_transform;
} scheme;

/* One of the products of a scheme. */
typedef struct {
    int input, filter, result;
    int first_of_filter, first_of_result; /* whether it is the first one with this plane */
} term;

INLINE int products_of(const scheme *m) { return m->count * m->count; }

/* Size of the planes of a panel of `columns` filters. */
INLINE long panel_floats(const scheme *m, long in, long columns)
{
    return m->filters * m->filters * filter_plane_of(in, columns);
}

INLINE term term_of(const scheme *m, int index)
{
    int i = index / m->count, j = index % m->count;
    term t = {m->terms[i].input * m->inputs + m->terms[j].input, m->terms[i].filter * m->filters + m->terms[j].filter,
              m->terms[i].result * m->results + m->terms[j].result, 1, 1};
    for (int k = 0; k < i; k++) {
        t.first_of_filter &= m->terms[k].filter != m->terms[i].filter;
        t.first_of_result &= m->terms[k].result != m->terms[i].result;
    }
    for (int k = 0; k < j; k++) {
        t.first_of_filter &= m->terms[k].filter != m->terms[j].filter;
        t.first_of_result &= m->terms[k].result != m->terms[j].result;
    }
    return t;
}

INLINE void b_transposed(const lanes *d, lanes *t)
{
    t[0] = d[0] - d[2], t[1] = d[1] + d[2], t[2] = d[2] - d[1], t[3] = d[1] - d[3];
}

INLINE void g_times(const lanes *g, lanes *t)
{
    lanes half = splat(0.5f), ends = (g[0] + g[2]) * half, middle = g[1] * half;
    t[0] = g[0], t[1] = ends + middle, t[2] = ends - middle, t[3] = g[2];
}

INLINE void g_transposed(const lanes *u, lanes *t)
{
    lanes half = splat(0.5f), sum = (u[1] + u[2]) * half, difference = (u[1] - u[2]) * half;
    t[0] = u[0] + sum, t[1] = difference, t[2] = u[3] + sum;
}

INLINE void a_times(const lanes *y, lanes *t)
{
    t[0] = y[0], t[1] = y[0] + y[1], t[2] = y[0] - y[1], t[3] = -y[1];
}

INLINE void a_transposed(const lanes *m, lanes *t)
{
    t[0] = m[0] + m[1] + m[2], t[1] = m[1] - m[2] - m[3];
}

/* The points of `large` are 0, P, -P, Q, -Q and infinity. AT_x: the inverse product of a point's differences to the
   others. */
#define P (3.f / 4)
#define Q (3.f / 2)
#define AT_0 (1 / (P * P * Q * Q))
#define AT_P (1 / (2 * P * P * (P * P - Q * Q)))
#define AT_Q (1 / (2 * Q * Q * (Q * Q - P * P)))

INLINE void large_b_transposed(const lanes *d, lanes *t)
{
    lanes p_even = d[4] - Q * Q * d[2], p_odd = P * (d[3] - Q * Q * d[1]);
    lanes q_even = d[4] - P * P * d[2], q_odd = Q * (d[3] - P * P * d[1]);
    t[0] = d[4] - (P * P + Q * Q) * d[2] + P * P * Q * Q * d[0];
    t[1] = p_even + p_odd, t[2] = p_even - p_odd;
    t[3] = q_even + q_odd, t[4] = q_even - q_odd;
    t[5] = d[5] - (P * P + Q * Q) * d[3] + P * P * Q * Q * d[1];
}

INLINE void large_g_times(const lanes *g, lanes *t)
{
    lanes p_even = AT_P * g[0] + AT_P * P * P * g[2], p_odd = AT_P * P * g[1];
    lanes q_even = AT_Q * g[0] + AT_Q * Q * Q * g[2], q_odd = AT_Q * Q * g[1];
    t[0] = AT_0 * g[0];
    t[1] = p_even + p_odd, t[2] = p_even - p_odd;
    t[3] = q_even + q_odd, t[4] = q_even - q_odd;
    t[5] = g[2];
}

INLINE void large_g_transposed(const lanes *u, lanes *t)
{
    lanes p_sum = AT_P * (u[1] + u[2]), p_difference = AT_P * P * (u[1] - u[2]);
    lanes q_sum = AT_Q * (u[3] + u[4]), q_difference = AT_Q * Q * (u[3] - u[4]);
    t[0] = AT_0 * u[0] + p_sum + q_sum;
    t[1] = p_difference + q_difference;
    t[2] = P * P * p_sum + Q * Q * q_sum + u[5];
}

INLINE void large_a_times(const lanes *y, lanes *t)
{
    lanes p_even = y[0] + P * P * y[2], p_odd = P * y[1] + P * P * P * y[3];
    lanes q_even = y[0] + Q * Q * y[2], q_odd = Q * y[1] + Q * Q * Q * y[3];
    t[0] = y[0];
    t[1] = p_even + p_odd, t[2] = p_even - p_odd;
    t[3] = q_even + q_odd, t[4] = q_even - q_odd;
    t[5] = y[3];
}

INLINE void large_a_transposed(const lanes *m, lanes *t)
{
    lanes p_sum = m[1] + m[2], p_difference = m[1] - m[2], q_sum = m[3] + m[4], q_difference = m[3] - m[4];
    t[0] = m[0] + p_sum + q_sum;
    t[1] = P * p_difference + Q * q_difference;
    t[2] = P * P * p_sum + Q * Q * q_sum;
    t[3] = P * P * P * p_difference + Q * Q * Q * q_difference + m[5];
}

#undef P
#undef Q

/* Inputs x[-1] to x[3]: odd indices for two taps, then even indices. */
INLINE void stride_2_inputs(const lanes *x, lanes *t)
{
    t[0] = x[0] - x[2], t[1] = x[2], t[2] = x[4] - x[2], t[3] = x[1], t[4] = x[3];
}

INLINE void stride_2_filters(const lanes *g, lanes *t)
{
    t[0] = g[0], t[1] = g[0] + g[2], t[2] = g[2], t[3] = g[1];
}

INLINE void stride_2_outputs(const lanes *m, lanes *t) { t[0] = m[0] + m[1], t[1] = m[1] + m[2]; }

INLINE void stride_2_output_gradients(const lanes *y, lanes *t) { t[0] = y[0], t[1] = y[0] + y[1], t[2] = y[1]; }

INLINE void stride_2_filter_gradients(const lanes *u, lanes *t)
{
    t[0] = u[0] + u[1], t[1] = u[3], t[2] = u[1] + u[2];
}

/* dy[0] to dy[2]. */
INLINE void spread_inputs(const lanes *y, lanes *t)
{
    t[0] = y[0] - y[1], t[1] = y[1], t[2] = y[2] - y[1], t[3] = y[0];
}

INLINE void spread_outputs(const lanes *m, lanes *t)
{
    t[0] = m[3], t[1] = m[0] + m[1], t[2] = m[4], t[3] = m[1] + m[2];
}

#define WINDOW_FUNCTION(NAME, MATRIX, SIDE, PLANES, MARGIN, PRUNE)                                                     \
    static void NAME(tile_range r, long from, long to, const float *map, long channel, long columns, float least,      \
                     const float *zeros, float *planes)                                                                \
    {                                                                                                                  \
        window_transform(MATRIX, SIDE, PLANES, MARGIN, PRUNE, r, from, to, map, channel, columns, least, zeros,        \
                         planes);                                                                                      \
    }
#define TILE_FUNCTION(NAME, MATRIX, PLANES, SIDE)                                                                      \
    static void NAME(tile_range r, const float *planes, long channel, long columns, const float *bias, float *map)     \
    {                                                                                                                  \
        tile_transform(MATRIX, PLANES, SIDE, r, planes, channel, columns, bias, map);                                  \
    }
#define FILTER_FUNCTION(NAME, MATRIX, SIDE)                                                                            \
    static void NAME(filter_shape f, const float *filters, long columns, long from, long to, float *planes)            \
    {                                                                                                                  \
        filter_transform(MATRIX, SIDE, f, filters, columns, from, to, planes);                                         \
    }
#define FILTER_GRADIENT_FUNCTION(NAME, MATRIX, SIDE)                                                                   \
    static void NAME(long in, const float *planes, long columns, long all, float *gradients)                           \
    {                                                                                                                  \
        filter_gradient_transform(MATRIX, SIDE, in, planes, columns, all, gradients);                                  \
    }

WINDOW_FUNCTION(inputs_1, b_transposed, 4, 4, 1, 0)
WINDOW_FUNCTION(pruned_inputs_1, b_transposed, 4, 4, 1, 1)
WINDOW_FUNCTION(output_gradients_1, a_times, 2, 4, 0, 0)
FILTER_FUNCTION(filters_1, g_times, 4)
FILTER_GRADIENT_FUNCTION(filter_gradients_1, g_transposed, 4)
TILE_FUNCTION(outputs_1, a_transposed, 4, 2)

WINDOW_FUNCTION(inputs_large, large_b_transposed, 6, 6, 1, 0)
WINDOW_FUNCTION(pruned_inputs_large, large_b_transposed, 6, 6, 1, 1)
WINDOW_FUNCTION(output_gradients_large, large_a_times, 4, 6, 0, 0)
FILTER_FUNCTION(filters_large, large_g_times, 6)
FILTER_GRADIENT_FUNCTION(filter_gradients_large, large_g_transposed, 6)
TILE_FUNCTION(outputs_large, large_a_transposed, 6, 4)

WINDOW_FUNCTION(inputs_2, stride_2_inputs, 5, 5, 1, 0)
WINDOW_FUNCTION(pruned_inputs_2, stride_2_inputs, 5, 5, 1, 1)
WINDOW_FUNCTION(output_gradients_2, stride_2_output_gradients, 2, 3, 0, 0)
FILTER_FUNCTION(filters_2, stride_2_filters, 4)
FILTER_GRADIENT_FUNCTION(filter_gradients_2, stride_2_filter_gradients, 4)
TILE_FUNCTION(outputs_2, stride_2_outputs, 3, 2)

WINDOW_FUNCTION(inputs_spread, spread_inputs, 3, 4, 0, 0)
TILE_FUNCTION(outputs_spread, spread_outputs, 5, 4)

static const scheme stride_1 = {
    .count = 4,
    .terms = {{0, 0, 0}, {1, 1, 1}, {2, 2, 2}, {3, 3, 3}},
    .inputs = 4,
    .filters = 4,
    .results = 4,
    .input_transform = inputs_1,
    .filter_transform = filters_1,
    .result_transform = outputs_1,
    .gradient_transform = output_gradients_1,
    .pruned_transform = pruned_inputs_1,
    .filter_gradient_transform = filter_gradients_1,
};
static const scheme large = {
    .count = 6,
    .terms = {{0, 0, 0}, {1, 1, 1}, {2, 2, 2}, {3, 3, 3}, {4, 4, 4}, {5, 5, 5}},
    .inputs = 6,
    .filters = 6,
    .results = 6,
    .input_transform = inputs_large,
    .filter_transform = filters_large,
    .result_transform = outputs_large,
    .gradient_transform = output_gradients_large,
    .pruned_transform = pruned_inputs_large,
    .filter_gradient_transform = filter_gradients_large,
};
static const scheme stride_2 = {
    .count = 5,
    .terms = {{0, 0, 0}, {1, 1, 1}, {2, 2, 2}, {3, 3, 0}, {4, 3, 2}},
    .inputs = 5,
    .filters = 4,
    .results = 3,
    .input_transform = inputs_2,
    .filter_transform = filters_2,
    .result_transform = outputs_2,
    .gradient_transform = output_gradients_2,
    .pruned_transform = pruned_inputs_2,
    .filter_gradient_transform = filter_gradients_2,
};
static const scheme spread = {
    .count = 5, /* gives no filters' gradients */
    .terms = {{0, 0, 0}, {1, 1, 1}, {2, 2, 2}, {3, 3, 3}, {1, 3, 4}},
    .inputs = 4,
    .filters = 4,
    .results = 5,
    .input_transform = inputs_spread,
    .filter_transform = filters_2,
    .result_transform = outputs_spread,
};

#endif
