/* Runs one call on several cores, with PyTorch's threads.

   Work is divided over outputs, never over a sum, so the bits do not depend on the number of threads. */
#ifndef SSFL_PARALLEL_H
#define SSFL_PARALLEL_H

typedef void work_part(void *work, int index, int parts);

/* Number of parts: `threads`, or 1 if `cost` is below `least` (a parallel region costs some microseconds) or there is no
   OpenMP runtime. Never a number in between: OpenMP ends the other threads of a smaller team, and the next
   larger team must start them again. */
int parts_for(int threads, double cost, double least);

/* Calls part(work, index, parts) for every index below `parts`, in parallel if possible. Parts must be independent of
   each other: with fewer threads than parts, one thread does several. */
void in_parts(int parts, work_part *part, void *work);

/* Start of part `index` if `count` items are divided in multiples of `grain`; some parts may be empty. */
static inline long part_begins(long count, long grain, int index, int parts)
{
    long grains = (count + grain - 1) / grain, at = grains * index / parts * grain;
    return at < count ? at : count;
}

#endif
