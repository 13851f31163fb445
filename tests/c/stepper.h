/* stepper.h: runs a piece of work in a forked child one instruction at a time (ptrace).
 *
 * Between two steps the child stands still at an instruction, and the shared memory is what a SIGKILL, or a
 * SIGSTOP, at that instruction would leave: a test copies it and judges the copy, and one child serves for all
 * its instructions. The child's private memory is a copy of the parent's at the fork. */
#ifndef SHMQ_STEPPER_H
#define SHMQ_STEPPER_H

#include "check.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

struct stepper {
    pid_t pid;
    uint64_t step_count;
    volatile uint32_t *is_over; /* shared with the child */
};

static inline void stepper_wait(struct stepper *s)
{
    int status = 0;
    CHECK(waitpid(s->pid, &status, 0) == s->pid);
    if (WIFEXITED(status) || WIFSIGNALED(status)) {
        fprintf(stderr, "the child ended by itself at step %" PRIu64 ": status 0x%x\n", s->step_count,
                (unsigned)status);
        exit(1);
    }
    CHECK(WSTOPSIG(status) == SIGTRAP || WSTOPSIG(status) == SIGSTOP);
}

/* Forks a child that calls prepare(argument) at full speed and stands still shortly before it calls work(argument). */
static inline void stepper_begin(struct stepper *s, void (*prepare)(void *), void (*work)(void *), void *argument)
{
    memset(s, 0, sizeof *s);
    void *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(word != MAP_FAILED);
    s->is_over = word;
    fflush(NULL);
    s->pid = fork();
    CHECK(s->pid >= 0);
    if (s->pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (prepare != NULL) {
            prepare(argument);
        }
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0 || raise(SIGSTOP) != 0) {
            _exit(2);
        }
        work(argument);
        *s->is_over = 1;
        (void)raise(SIGSTOP);
        _exit(0);
    }
    stepper_wait(s);
}

/* One instruction. 0: the work is over. */
static inline int stepper_step(struct stepper *s)
{
    if (*s->is_over != 0) {
        return 0;
    }
    CHECK(ptrace(PTRACE_SINGLESTEP, s->pid, NULL, NULL) == 0);
    stepper_wait(s);
    s->step_count += 1;
    return *s->is_over == 0;
}

/* Lets the child go on at full speed to the end of its work. */
static inline void stepper_finish(struct stepper *s)
{
    while (*s->is_over == 0) {
        CHECK(ptrace(PTRACE_CONT, s->pid, NULL, NULL) == 0);
        stepper_wait(s);
    }
}

/* SIGKILL where it stands. */
static inline void stepper_kill(struct stepper *s)
{
    CHECK(kill(s->pid, SIGKILL) == 0);
    int status;
    CHECK(waitpid(s->pid, &status, 0) == s->pid);
    munmap((void *)(uintptr_t)s->is_over, 4096);
}

/* SHMQ_FULL=1 asks for every instruction where the default set samples. */
static inline int stepper_is_full_run(void)
{
    const char *full = getenv("SHMQ_FULL");
    return full != NULL && strcmp(full, "1") == 0;
}

#endif
