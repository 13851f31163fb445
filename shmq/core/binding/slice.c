/* slice.c: how long the scheduler lets a thread run at a time. */
#include "slice.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of sched_setattr(2): glibc has it since 2.41, and the kernel's own header beside it would define it twice. */
struct slice_attr {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns;
    uint64_t deadline_ns;
    uint64_t period_ns;
};

void shmq_slice_ask(uint64_t slice_ns)
{
    struct slice_attr attr = {.size = sizeof attr};
    if (syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) == 0 && attr.policy == SCHED_OTHER) {
        attr.runtime_ns = slice_ns;
        (void)syscall(SYS_sched_setattr, 0, &attr, 0);
    }
}
