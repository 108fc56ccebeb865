/* The kernels, compiled once for each instruction set: a table of the same functions for each. */
#ifndef SSFL_ISA_TABLE_H
#define SSFL_ISA_TABLE_H

#include "../group_conv/group_conv.h"
#include "../group_norm/group_norm.h"
#include "../memory_bound/channels.h"
#include "../memory_bound/images.h"
#include "../winograd/winograd.h"

/* The header of each kernel family documents its functions. Functions that return int return 0 if memory for their
   scratch space cannot be allocated. */
typedef struct {
    const char *name;
    void (*norm_forward)(const norm_work *w, int threads);
    int (*norm_backward)(const norm_gradients *w, int threads);
    int (*conv_forward)(const conv_shape *s, const float *x, const float *filters, float *y);
    int (*conv_backward)(const conv_shape *s, const float *dy, const float *x, const float *filters, float *dx,
                         float *dfilters);
    int (*winograd)(const winograd_work *w);
    long (*expand)(const uint8_t *mask, long size, const float *values, long kept, float *out, int threads);
    void (*multiply_by_mask)(const uint8_t *mask, long size, float *values, int threads);
    void (*weighted_sum)(const float *const *vectors, const float *weights, long count, long size, float *out,
                         int threads);
    void (*gather_bytes)(const image_batch *b, const uint8_t *source, const float *table, float *out);
    void (*gather_floats)(const image_batch *b, const float *source, const float *mean, const float *deviation,
                          float *out);
    int (*gather_slices)(const slices *s, const float *x, float *out);
    int (*scatter_slices)(const slices *s, const float *x, float *out);
} kernel_table;

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_WIDER_SETS 1
extern const kernel_table kernels_avx512, kernels_avx2;
#endif
/* sse2 on x86-64, neon on 64-bit ARM, plain C elsewhere. */
extern const kernel_table kernels_baseline;

/* The tables that this processor can use, widest registers first; null after the last. */
const kernel_table *const *usable_kernels(void);

#endif
