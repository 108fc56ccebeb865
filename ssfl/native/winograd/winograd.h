/* 3x3 convolutions with padding 1 and stride 1 or 2 by Winograd's minimal filtering (Lavin and Gray 2016,
   arXiv:1509.09308): with stride 1, a 4x4 tile of outputs costs 36 products per channel pair instead of 144, or, for
   maps that such tiles cover badly, a 2x2 tile 16 instead of 36; with stride 2, a 2x2 tile costs 25 instead of 36
   (schemes.h).

   Rounding errors are below 1e-6 of the norm: with 4x4 tiles at most about twice those of a direct convolution, for
   filters' gradients four times; smaller with 2x2 tiles. */
#ifndef SSFL_WINOGRAD_H
#define SSFL_WINOGRAD_H

/* Images with channels last, x: [images, height, width, in], y: [images, height / stride, width / stride, out], rounded
   up; filters [out, in, 3, 3]; all float32. in, out: multiples of 16. stride: 1 or 2. */
typedef struct {
    long images, in, out, height, width, stride;
} winograd_shape;

/* Computes those of y (from x, filters and bias, which may be null), dx (from dy and filters) and dfilters (from dy and
   x) that are not null. least: for dfilters only, entries of x with a smaller magnitude are treated as zeros. */
typedef struct {
    winograd_shape shape;
    const float *x, *filters, *bias, *dy;
    float *y, *dx, *dfilters;
    float least;
    int threads; /* maximum number of threads (parallel.h) */
} winograd_work;

#endif
