/* 3x3 convolutions with padding 1 and stride 1 of many groups with few channels each: K clients' filters at once. */
#ifndef SSFL_GROUP_CONV_H
#define SSFL_GROUP_CONV_H

/* x: [images, groups * in, height, width], y: [images, groups * out, height, width], filters: [groups * out, in, 3, 3],
   all float32. in, out: channels of one group. */
typedef struct {
    long images, groups, in, out, height, width;
} conv_shape;

/* conv_forward computes y from x and filters. conv_backward computes dfilters and, unless it is null, dx from dy. */

#endif
