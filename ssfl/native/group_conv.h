/* 3x3 convolutions with padding 1 and stride 1 of many groups with few channels each: K clients' own filters at once. */
#ifndef SSFL_GROUP_CONV_H
#define SSFL_GROUP_CONV_H

/* x: [images, groups * in, height, width], y: [images, groups * out, height, width], filters: [groups * out, in, 3, 3],
   all float32. in, out: channels of one group. */
typedef struct {
    long images, groups, in, out, height, width;
} conv_shape;

/* Both return 0 where there is no memory to work in. */
int conv_forward(const conv_shape *s, const float *x, const float *filters, float *y);

/* From dy to dx, unless that is null, and dfilters. */
int conv_backward(const conv_shape *s, const float *dy, const float *x, const float *filters, float *dx,
                  float *dfilters);

#endif
