#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* RTLD_DEFAULT */
#endif
#include "parallel.h"

#include <dlfcn.h>
#include <pthread.h>

/* The OpenMP runtime that PyTorch has loaded, looked up at the first use. A second OpenMP runtime would have separate
   threads, and both would wait actively on the same cores. */
typedef struct {
    void (*parallel)(void (*body)(void *), void *data, unsigned threads, unsigned flags);
    int (*thread)(void);
    int (*threads)(void);
} openmp;

static openmp loaded;
static pthread_once_t looked_up = PTHREAD_ONCE_INIT;

static void look_up(void)
{
    openmp found;
    *(void **)&found.parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    *(void **)&found.thread = dlsym(RTLD_DEFAULT, "omp_get_thread_num");
    *(void **)&found.threads = dlsym(RTLD_DEFAULT, "omp_get_num_threads");
    if (found.parallel && found.thread && found.threads)
        loaded = found;
}

static const openmp *threads_of_pytorch(void)
{
    pthread_once(&looked_up, look_up);
    return loaded.parallel ? &loaded : 0;
}

int parts_for(int threads, double cost, double least)
{
    return threads > 1 && cost >= least && threads_of_pytorch() ? threads : 1;
}

typedef struct {
    const openmp *team;
    work_part *part;
    void *work;
    int parts;
} region;

static void body(void *data)
{
    const region *r = data;
    int there = r->team->threads(); /* may be fewer than requested */
    for (int index = r->team->thread(); index < r->parts; index += there)
        r->part(r->work, index, r->parts);
}

void in_parts(int parts, work_part *part, void *work)
{
    const openmp *team = parts > 1 ? threads_of_pytorch() : 0;
    if (team) {
        region r = {team, part, work, parts};
        team->parallel(body, &r, (unsigned)parts, 0);
        return;
    }
    for (int index = 0; index < parts; index++)
        part(work, index, parts);
}
