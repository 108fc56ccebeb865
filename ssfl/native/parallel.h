/* One call's work on several cores, by the threads that PyTorch itself computes with.

   Work is split over outputs, never over a sum, so results are the same bits whatever the number of threads. */
#ifndef SSFL_PARALLEL_H
#define SSFL_PARALLEL_H

typedef void work_part(void *work, int index, int parts);

/* How many parts to make: `threads`, or 1 where `cost` is below `least` (a region costs some microseconds) or where
   there is nobody to share with. Never a number between: a team that shrinks ends its other threads, and the next
   larger one would have to start them again. */
int parts_for(int threads, double cost, double least);

/* part(work, index, parts) for every index below `parts`, at the same time where that is possible. All parts must be
   independent of each other: with fewer threads than parts, one thread does several. */
void in_parts(int parts, work_part *part, void *work);

/* Where part `index` begins of `count` things that are shared out in whole grains; some parts may be empty. */
static inline long part_begins(long count, long grain, int index, int parts)
{
    long grains = (count + grain - 1) / grain, at = grains * index / parts * grain;
    return at < count ? at : count;
}

#endif
