/* Adds RUNTAPE_BENCH_SYNC_US microseconds to fsync and fdatasync: a disk that does not answer from a cache.
 * Preloaded into the server by `runtape bench --slow-fsync`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void wait_as_long(void)
{
    const char *given = getenv("RUNTAPE_BENCH_SYNC_US");
    long us = given ? atol(given) : 0;
    struct timespec pause = {us / 1000000, us % 1000000 * 1000};
    if (us > 0)
        nanosleep(&pause, NULL);
}

int fsync(int fd)
{
    int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    wait_as_long();
    return next(fd);
}

int fdatasync(int fd)
{
    int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    wait_as_long();
    return next(fd);
}
