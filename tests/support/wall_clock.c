/* wall_clock.c: LD_PRELOAD library that sets the wall clock of some processes only, as a person with `date` would
 * for all: CLOCK_REALTIME is off by the milliseconds in the first eight bytes of SHMQ_WALL_CLOCK_FILE, which may
 * change at any time. No other clock is touched. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset_ms;

__attribute__((constructor)) static void start(void)
{
    const char *name = getenv("SHMQ_WALL_CLOCK_FILE");
    int fd = name == NULL ? -1 : open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return;
    }
    void *memory = mmap(NULL, sizeof *offset_ms, PROT_READ, MAP_SHARED, fd, 0);
    offset_ms = memory == MAP_FAILED ? NULL : memory;
    close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *out)
{
    if (syscall(SYS_clock_gettime, clock, out) != 0) {
        return -1;
    }
    if (offset_ms != NULL && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ms = *offset_ms;
        out->tv_sec += ms / 1000;
        out->tv_nsec += ms % 1000 * 1000000;
        if (out->tv_nsec >= 1000000000) {
            out->tv_sec += 1;
            out->tv_nsec -= 1000000000;
        } else if (out->tv_nsec < 0) {
            out->tv_sec -= 1;
            out->tv_nsec += 1000000000;
        }
    }
    return 0;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone)
{
    (void)zone;
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) {
        return -1;
    }
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    if (out != NULL) {
        *out = now.tv_sec;
    }
    return now.tv_sec;
}
