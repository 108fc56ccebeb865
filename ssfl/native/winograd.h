/* 3x3 convolutions with padding 1 and stride 1 by Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray 2016,
   arXiv:1509.09308): a 2x2 tile of outputs costs 16 products a channel pair instead of 36.

   Rounding errors of values and of gradients of images are those of a direct convolution (fewer products are added);
   those of filters' gradients are a few times larger, about 1e-6 of their norm. */
#ifndef SSFL_WINOGRAD_H
#define SSFL_WINOGRAD_H

/* Images with channels last, x: [images, height, width, in], y: [images, height, width, out]; filters
   [out, in, 3, 3]; all float32. in, out: multiples of 16. */
typedef struct {
    long images, in, out, height, width;
} winograd_shape;

/* x, filters and bias (or null) to y, unless that is null; dy and filters to dx, unless null; dy and x to dfilters,
   unless null. */
typedef struct {
    winograd_shape shape;
    const float *x, *filters, *bias, *dy;
    float *y, *dx, *dfilters;
    int threads; /* that may compute it (parallel.h) */
} winograd_work;

/* With registers of at most so many bits: 512 (AVX-512), 256 (AVX2 with FMA) or 128, as far as the processor has them.
   Returns 0 where there is no memory to work in. */
int winograd(const winograd_work *w, int bits);

/* The same for a processor that has them. */
int winograd_512(const winograd_work *w);
int winograd_256(const winograd_work *w);
int winograd_128(const winograd_work *w);

#endif
