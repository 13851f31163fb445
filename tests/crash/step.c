/* step.c: holds one thread of another process and runs it instruction by instruction (ptrace), so that a test can
 * kill or stop that process at any instruction of the shipped extension. Driven over stdin and stdout, one line a
 * command, one line an answer ("error ..." if the kernel refused):
 *
 *     seize TID        trace this thread, which runs on; killed with its process should we die
 *     until ADDRESS    run to this instruction (a function's first one); the work ends with its return
 *     interrupt        stop it where it is; the work ends where it has nothing to do: at a pause, or at epoll_wait
 *     begin            counts instructions from here
 *     watch PATH SIZE  a shared object, for survey
 *     step COUNT       COUNT instructions: "at N", or "over N" where the work has ended before; N: taken so far
 *     walk COUNT       the same, but on to the end of the vDSO: its clock begins anew when time goes on meanwhile, so
 *                      a thread that stands there now and then would never come out
 *     calls COUNT      COUNT entries into and exits from system calls, answered as step; the work ends at recvmsg, or with
 *                      the thread
 *     survey           to the end of the work: "over N" and the numbers of the instructions that changed a watched
 *                      object or were system calls
 *     kill             SIGKILL to the process
 *     stop             let go, but stopped as by SIGSTOP at this instruction
 *     go               let go
 *
 * x86-64 only: it plants int3, and knows a system call and a return address by sight. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __x86_64__
#error "step.c knows x86-64 only"
#endif

#define WATCH_MAX 16
#define INT3 0xccu
#define SYSCALL 0x050fu /* as the bytes of an instruction read */
#define PAUSE 0x90f3u
#define SYSCALL_STOP 0x80 /* PTRACE_O_TRACESYSGOOD marks such stops with it */

struct watch {
    const uint8_t *memory;
    uint8_t *last;
    size_t size;
};

static pid_t thread;
static pid_t process;
static uint64_t step_count;
static int has_ended;   /* the thread, by itself */
static int is_standing; /* rather than running */
static uint64_t vdso_begin;
static uint64_t vdso_end;
static uint64_t return_address; /* 0: the work ends at a pause */
static uint64_t return_stack;
static struct watch watches[WATCH_MAX];
static int watch_count;

static int fail(const char *what)
{
    printf("error %s: %s\n", what, strerror(errno));
    return -1;
}

/* Waits until the thread stands still. -1: it is gone. */
static int await_stop(int *signal_number)
{
    int status;
    pid_t got;
    do {
        got = waitpid(thread, &status, __WALL);
    } while (got < 0 && errno == EINTR);
    if (got != thread) {
        return fail("wait for the thread");
    }
    if (!WIFSTOPPED(status)) {
        has_ended = 1;
        return -1;
    }
    *signal_number = WSTOPSIG(status);
    return 0;
}

/* Runs the thread with `request` until it stops for a trap; other signals are its own. */
static int run(enum __ptrace_request request)
{
    int trap = request == PTRACE_SYSCALL ? SIGTRAP | SYSCALL_STOP : SIGTRAP;
    int number = 0;
    do {
        if (ptrace(request, thread, NULL, (void *)(intptr_t)number) != 0) {
            return fail("go on");
        }
        if (await_stop(&number) != 0) {
            if (has_ended && request != PTRACE_SYSCALL) {
                printf("error the thread ended by itself at instruction %" PRIu64 "\n", step_count);
            }
            return -1;
        }
    } while (number != trap);
    return 0;
}

static int get_registers(struct user_regs_struct *registers)
{
    return ptrace(PTRACE_GETREGS, thread, NULL, registers) == 0 ? 0 : fail("read the registers");
}

static int read_word(uint64_t address, uint64_t *word)
{
    errno = 0;
    *word = (uint64_t)ptrace(PTRACE_PEEKDATA, thread, (void *)address, NULL);
    return errno == 0 ? 0 : fail("read its memory");
}

/* Calls take(line) for every line of a file of /proc about the thread. */
static int read_proc(pid_t tid, const char *name, void (*take)(const char *))
{
    char path[64];
    char line[512];
    snprintf(path, sizeof path, "/proc/%d/%s", tid, name);
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return fail("find the thread");
    }
    while (fgets(line, sizeof line, file) != NULL) {
        take(line);
    }
    (void)fclose(file);
    return 0;
}

static void take_status(const char *line)
{
    if (strncmp(line, "Tgid:", 5) == 0) {
        process = (pid_t)atoi(line + 5);
    }
}

static void take_map(const char *line)
{
    if (strstr(line, "[vdso]") != NULL) {
        (void)sscanf(line, "%" SCNx64 "-%" SCNx64, &vdso_begin, &vdso_end);
    }
}

static int seize(pid_t tid)
{
    vdso_begin = vdso_end = 0;
    has_ended = 0;
    is_standing = 0;
    if (read_proc(tid, "status", take_status) != 0 || read_proc(tid, "maps", take_map) != 0) {
        return -1;
    }
    if (ptrace(PTRACE_SEIZE, tid, NULL, (void *)(PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD)) != 0) {
        return fail("seize the thread");
    }
    thread = tid;
    step_count = 0;
    return_address = 0;
    printf("ok\n");
    return 0;
}

/* Lets it stand still, if it does not yet. */
static int hold(void)
{
    int number;
    if (!is_standing &&
        (ptrace(PTRACE_INTERRUPT, thread, NULL, NULL) != 0 || await_stop(&number) != 0)) {
        return fail("interrupt the thread");
    }
    is_standing = 1;
    return 0;
}

static int until(uint64_t address)
{
    uint64_t text;
    struct user_regs_struct registers;
    if (hold() != 0 || read_word(address, &text) != 0) {
        return -1;
    }
    if (ptrace(PTRACE_POKETEXT, thread, (void *)address, (void *)((text & ~UINT64_C(0xff)) | INT3)) != 0) {
        return fail("plant a breakpoint");
    }
    printf("ok\n"); /* the test lets the process come here, and asks again */
    fflush(stdout);
    if (run(PTRACE_CONT) != 0 || get_registers(&registers) != 0) {
        return -1;
    }
    if (registers.rip != address + 1) {
        printf("error stopped at 0x%llx, not at the breakpoint\n", registers.rip);
        return -1;
    }
    registers.rip = address;
    if (ptrace(PTRACE_POKETEXT, thread, (void *)address, (void *)text) != 0 ||
        ptrace(PTRACE_SETREGS, thread, NULL, &registers) != 0) {
        return fail("take the breakpoint away");
    }
    return_stack = registers.rsp;
    if (read_word(registers.rsp, &return_address) != 0) {
        return -1;
    }
    printf("hit\n");
    return 0;
}

static int interrupt(void)
{
    if (hold() != 0) {
        return -1;
    }
    return_address = 0;
    printf("ok\n");
    return 0;
}

static int watch(const char *path, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || watch_count == WATCH_MAX) {
        return fail(path);
    }
    struct watch *made = &watches[watch_count];
    made->memory = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    (void)close(fd);
    made->last = malloc(size);
    made->size = size;
    if (made->memory == MAP_FAILED || made->last == NULL) {
        return fail(path);
    }
    watch_count += 1;
    printf("ok\n");
    return 0;
}

static int is_changed(void)
{
    int changed = 0;
    for (int i = 0; i < watch_count; ++i) {
        if (memcmp(watches[i].last, watches[i].memory, watches[i].size) != 0) {
            memcpy(watches[i].last, watches[i].memory, watches[i].size);
            changed = 1;
        }
    }
    return changed;
}

/* Does it stand where it waits for work? */
static int is_idle(const struct user_regs_struct *registers, uint64_t text)
{
    int is_epoll = registers->rax == SYS_epoll_wait || registers->rax == SYS_epoll_pwait;
    return (text & 0xffff) == PAUSE || ((text & 0xffff) == SYSCALL && is_epoll);
}

/* One instruction. 1: done; 0: the work is over; -1: an error was told. */
static int step(int is_first, int *was_syscall)
{
    struct user_regs_struct registers;
    uint64_t text;
    if (get_registers(&registers) != 0 || read_word(registers.rip, &text) != 0) {
        return -1;
    }
    *was_syscall = (text & 0xffff) == SYSCALL;
    if (return_address != 0 ? registers.rip == return_address && registers.rsp > return_stack
                            : !is_first && is_idle(&registers, text)) {
        return 0;
    }
    if (run(PTRACE_SINGLESTEP) != 0) {
        return -1;
    }
    step_count += 1;
    return 1;
}

static int is_in_vdso(void)
{
    struct user_regs_struct registers;
    return get_registers(&registers) == 0 && registers.rip >= vdso_begin && registers.rip < vdso_end;
}

static int step_many(uint64_t count, int is_walking)
{
    int is_going = 1;
    int was_syscall;
    for (uint64_t i = 0; is_going > 0 && (i < count || (is_walking && is_in_vdso())); ++i) {
        is_going = step(i == 0, &was_syscall);
    }
    if (is_going < 0) {
        return -1;
    }
    printf("%s %" PRIu64 "\n", is_going ? "at" : "over", step_count);
    return 0;
}

static int call_many(uint64_t count)
{
    struct user_regs_struct registers;
    int is_over = 0;
    for (uint64_t i = 0; i < count && !is_over; ++i) {
        if (run(PTRACE_SYSCALL) != 0) {
            if (!has_ended) {
                return -1;
            }
            is_over = 1;
            break;
        }
        if (get_registers(&registers) != 0) {
            return -1;
        }
        int is_waiting = registers.orig_rax == SYS_recvmsg;
        is_over = is_waiting && step_count != 0; /* it came out of one when it began */
        step_count += !is_waiting;
        i -= is_waiting && !is_over;
    }
    printf("%s %" PRIu64 "\n", is_over ? "over" : "at", step_count);
    return 0;
}

static int survey(void)
{
    size_t room = 1u << 20;
    size_t used = 0;
    char *list = malloc(room);
    int is_going;
    int was_syscall;
    if (list == NULL) {
        return fail("survey");
    }
    (void)is_changed();
    list[0] = '\0';
    for (int is_first = 1; (is_going = step(is_first, &was_syscall)) > 0; is_first = 0) {
        if ((is_changed() || was_syscall) && used + 32 < room) {
            used += (size_t)snprintf(list + used, room - used, " %" PRIu64, step_count);
        }
    }
    if (is_going == 0) {
        printf("over %" PRIu64 "%s\n", step_count, list);
    }
    free(list);
    return is_going;
}

static int let_go(int is_stopped)
{
    /* Pending when the thread is let go, it is taken before another instruction is. */
    if (is_stopped && syscall(SYS_tgkill, process, thread, SIGSTOP) != 0) {
        return fail("stop the process");
    }
    if (ptrace(PTRACE_DETACH, thread, NULL, NULL) != 0) {
        return fail("let go");
    }
    printf("ok\n");
    return 0;
}

static int kill_process(void)
{
    int status;
    if (has_ended) {
        printf("ok\n");
        return 0;
    }
    if (kill(process, SIGKILL) != 0) {
        return fail("kill the process");
    }
    do {
        if (waitpid(thread, &status, __WALL) < 0 && errno != EINTR) {
            return fail("wait for the end");
        }
    } while (WIFSTOPPED(status));
    printf("ok\n");
    return 0;
}

int main(void)
{
    char line[512];
    char path[384];
    uint64_t number;
    size_t size;
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (sscanf(line, "seize %" SCNu64, &number) == 1) {
            (void)seize((pid_t)number);
        } else if (sscanf(line, "until %" SCNu64, &number) == 1) {
            (void)until(number);
        } else if (sscanf(line, "watch %383s %zu", path, &size) == 2) {
            (void)watch(path, size);
        } else if (sscanf(line, "step %" SCNu64, &number) == 1) {
            (void)step_many(number, 0);
        } else if (sscanf(line, "calls %" SCNu64, &number) == 1) {
            (void)call_many(number);
        } else if (sscanf(line, "walk %" SCNu64, &number) == 1) {
            (void)step_many(number, 1);
        } else if (strcmp(line, "begin\n") == 0) {
            step_count = 0;
            printf("ok\n");
        } else if (strcmp(line, "interrupt\n") == 0) {
            (void)interrupt();
        } else if (strcmp(line, "survey\n") == 0) {
            (void)survey();
        } else if (strcmp(line, "kill\n") == 0) {
            (void)kill_process();
        } else if (strcmp(line, "stop\n") == 0) {
            (void)let_go(1);
        } else if (strcmp(line, "go\n") == 0) {
            (void)let_go(0);
        } else {
            printf("error what is %s", line);
        }
        fflush(stdout);
    }
    return 0;
}
