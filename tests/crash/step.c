/* step.c: holds one thread of another process and runs it instruction by instruction (ptrace), so that a test can
 * kill or stop that process at any instruction of the shipped extension. Driven over stdin and stdout, one line a
 * command, one line an answer ("error ..." if the kernel refused):
 *
 *     seize TID        trace this thread, which runs on; killed with its process should we die
 *     until ADDRESS    run to this instruction (a function's first one); the work ends with its return
 *     interrupt        stop it where it is; the work ends where it has nothing to do: at a pause, or at epoll_wait
 *     begin            counts instructions from here
 *     watch PATH SIZE  a shared object: learn says which instructions changed it
 *     unwatch          none any more
 *     step COUNT       COUNT instructions: "at N", or "over N" where the work has ended before; N: taken so far
 *     learn            to the end of the work, remembering its way: "over N" and the address of each instruction, 0 for
 *                      one of the vDSO. Learnt again, only what both ways began with is known (the vDSO's instructions
 *                      aside: their number depends on the time). What follows an end is learnt by asking again. Marked
 *                      by '*': it changed a watched object, or was a system call. Without a watch: what the last time
 *                      says of it, or that it is not known
 *     leap COUNT       as step, but by breakpoints where the way is known; "astray N" if the thread went another way: it
 *                      stands at some later instruction
 *     finish           to the return of the function that `until` came to
 *     walk COUNT       the same as step, but on to the end of the vDSO: its clock begins anew when time goes on meanwhile, so
 *                      a thread that stands there now and then would never come out
 *     meet ADDRESS REST  as step, to the next time that it stands at this instruction; every MEET_STEPS instructions it
 *                      stands still for REST microseconds, as it would on a busy machine
 *     calls COUNT      COUNT entries into and exits from system calls, answered as step; the work ends at recvmsg, or with
 *                      the thread
 *     kill             SIGKILL to the process
 *     stop             let go, but stopped as by SIGSTOP at this instruction
 *     go               let go
 *
 * "at" and "over" also say the address it stands at, and how often the instruction there is still to repeat itself.
 *
 * The held thread and this process share a processor: a step is then a switch, not a wake-up of another core.
 *
 * x86-64 only: it plants int3, knows a system call and a return address by sight, and leaps with the debug registers,
 * which are a thread's own: int3 would kill the thread's siblings. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
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
#define REP 0xf3u
#define REX_W 0x48u
#define PHASE_MAX 4
#define WAY_MAX (UINT64_C(1) << 20)
#define NOT_THERE UINT64_MAX
#define LEAP_MIN 8 /* instructions; a shorter leap costs more than its steps */
#define MEET_STEPS 64u
#define TEXT_SLOTS 4096u
#define MISS_SECONDS 2u
#define SYSCALL_STOP 0x80 /* PTRACE_O_TRACESYSGOOD marks such stops with it */

struct watch {
    const uint8_t *memory;
    uint8_t *last;
    size_t size;
};

/* The work up to one of its ends: what the thread stands at before it takes each instruction, and at the end. */
struct way {
    uint64_t *address;
    uint64_t *previous; /* 1 + where the same address is met before; 0: nowhere; NOT_THERE: no place to leap to */
    uint64_t length;    /* instructions */
    uint8_t *has_changed;
    uint64_t known;     /* the last place that this and the last time it was learnt have in common; 0: not learnt */
};

static struct way ways[PHASE_MAX];
static int phase;            /* how many ends were passed */
static uint64_t phase_begin; /* its step_count */
static int is_at_end;
static volatile sig_atomic_t is_late;
static cpu_set_t all_processors;
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
        if (is_late) {
            is_late = 0;
            (void)ptrace(PTRACE_INTERRUPT, thread, NULL, NULL);
        }
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

static void on_alarm(int number)
{
    (void)number;
    is_late = 1;
}

/* What the thread stands at, as an instruction's bytes read. Text does not change while a thread is held. */
static struct {
    uint64_t address;
    uint64_t text;
} texts[TEXT_SLOTS];

static int read_word(uint64_t address, uint64_t *word)
{
    errno = 0;
    *word = (uint64_t)ptrace(PTRACE_PEEKDATA, thread, (void *)address, NULL);
    return errno == 0 ? 0 : fail("read its memory");
}

static int read_text(uint64_t address, uint64_t *text)
{
    size_t slot = address % TEXT_SLOTS;
    if (texts[slot].address != address) {
        if (read_word(address, &texts[slot].text) != 0) {
            return -1;
        }
        texts[slot].address = address;
    }
    *text = texts[slot].text;
    return 0;
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

/* Counts from here. */
static void begin(void)
{
    step_count = 0;
    phase = 0;
    phase_begin = 0;
    is_at_end = 0;
}

static int share_processor(pid_t tid)
{
    cpu_set_t one;
    if (sched_setaffinity(0, sizeof all_processors, &all_processors) != 0) {
        return fail("go to any processor");
    }
    CPU_ZERO(&one);
    CPU_SET((size_t)sched_getcpu(), &one);
    if (sched_setaffinity(0, sizeof one, &one) != 0 || sched_setaffinity(tid, sizeof one, &one) != 0) {
        return fail("share a processor");
    }
    return 0;
}

static int seize(pid_t tid)
{
    memset(texts, 0, sizeof texts);
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
    begin();
    return_address = 0;
    if (share_processor(tid) != 0) {
        return -1;
    }
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
    begin();
    printf("hit\n");
    return 0;
}

static int interrupt(void)
{
    if (hold() != 0) {
        return -1;
    }
    return_address = 0;
    begin();
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

static void unwatch(void)
{
    while (watch_count > 0) {
        watch_count -= 1;
        (void)munmap((void *)(uintptr_t)watches[watch_count].memory, watches[watch_count].size);
        free(watches[watch_count].last);
    }
    printf("ok\n");
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
    if (get_registers(&registers) != 0 || read_text(registers.rip, &text) != 0) {
        return -1;
    }
    *was_syscall = (text & 0xffff) == SYSCALL;
    if (return_address != 0 ? registers.rip == return_address && registers.rsp > return_stack
                            : !is_first && is_idle(&registers, text)) {
        is_at_end = 1;
        return 0;
    }
    if (run(PTRACE_SINGLESTEP) != 0) {
        return -1;
    }
    step_count += 1;
    return 1;
}

static int is_of_vdso(uint64_t address)
{
    return address >= vdso_begin && address < vdso_end;
}

static int is_in_vdso(void)
{
    struct user_regs_struct registers;
    return get_registers(&registers) == 0 && is_of_vdso(registers.rip);
}

static int is_string_copy(uint64_t text)
{
    uint64_t code = ((text >> 8) & 0xff) == REX_W ? (text >> 16) & 0xff : (text >> 8) & 0xff;
    return (text & 0xff) == REP && (code == 0xa4 || code == 0xa5 || code == 0xaa || code == 0xab); /* movs, stos */
}

static int say(int is_going)
{
    struct user_regs_struct registers;
    uint64_t text;
    if (get_registers(&registers) != 0 || read_text(registers.rip, &text) != 0) {
        return -1;
    }
    printf("%s %" PRIu64 " %llu %llu\n", is_going ? "at" : "over", step_count, registers.rip,
           is_string_copy(text) ? registers.rcx : 0);
    return 0;
}

/* Behind an end of the work another part of it begins. */
static void pass_end(void)
{
    if (is_at_end) {
        phase += 1;
        phase_begin = step_count;
        is_at_end = 0;
    }
}

static int step_many(uint64_t count, int is_walking)
{
    int is_going = 1;
    int was_syscall;
    pass_end();
    for (uint64_t i = 0; is_going > 0 && (i < count || (is_walking && is_in_vdso())); ++i) {
        is_going = step(i == 0, &was_syscall);
    }
    if (is_going < 0) {
        return -1;
    }
    return say(is_going);
}

/* Step by step, so that time passes as it did when the way was learnt, or slower. */
static int meet(uint64_t address, useconds_t rest_us)
{
    struct user_regs_struct registers;
    uint64_t since = 0;
    int is_going = 1;
    int was_syscall;
    pass_end();
    for (int is_first = 1; is_going > 0; is_first = 0) {
        if (get_registers(&registers) != 0) {
            return -1;
        }
        if (registers.rip == address) {
            break;
        }
        since += 1;
        if (rest_us != 0 && since >= MEET_STEPS && !is_of_vdso(registers.rip)) { /* whose clock would begin anew */
            (void)usleep(rest_us);
            since = 0;
        }
        is_going = step(is_first, &was_syscall);
    }
    return is_going < 0 ? -1 : say(is_going);
}

static int set_debug_register(size_t number, uint64_t value)
{
    size_t place = offsetof(struct user, u_debugreg) + number * sizeof(uint64_t);
    return ptrace(PTRACE_POKEUSER, thread, (void *)place, (void *)value) == 0 ? 0 : fail("set a breakpoint");
}

/* Runs it to one of two instructions, neither of which it stands at. */
static int run_to(uint64_t address, uint64_t other, uint64_t *reached)
{
    struct user_regs_struct registers;
    if (set_debug_register(0, address) != 0 || set_debug_register(1, other) != 0 ||
        set_debug_register(7, 5) != 0) { /* both on */
        return -1;
    }
    (void)alarm(MISS_SECONDS);
    int got = run(PTRACE_CONT);
    (void)alarm(0);
    is_late = 0;
    if (got != 0 || set_debug_register(7, 0) != 0 || get_registers(&registers) != 0) {
        return -1;
    }
    *reached = registers.rip;
    return 0;
}

/* The last place up to `target` that is the next one of its address behind `place`. */
static uint64_t landing(const struct way *way, uint64_t place, uint64_t target)
{
    for (uint64_t i = target < way->known ? target : way->known; i > place + LEAP_MIN; --i) {
        if (way->previous[i] <= place + 1) {
            return i;
        }
    }
    return place;
}

/* 1: there; 0: the work is over; -1: an error was told; -2: it went another way. */
static int leap(const struct way *way, uint64_t to)
{
    struct user_regs_struct registers;
    uint64_t reached;
    uint64_t place = step_count - phase_begin;
    int was_syscall;
    int is_on_way = get_registers(&registers) == 0 && registers.rip == way->address[place];
    int is_going = step(place == 0, &was_syscall); /* off whatever it stands at */
    if (is_going <= 0 || !is_on_way) {
        return is_going;
    }
    if (run_to(way->address[to], way->address[way->length], &reached) != 0) {
        return -1;
    }
    if (reached != way->address[to]) {
        return -2;
    }
    step_count = phase_begin + to;
    return 1;
}

/* Into the midst of an instruction that repeats itself: it is let run as if that were all there is to do, and given
 * back what is left. The way counts each repetition as an instruction. Returns as leap; 2: it is none such. */
static int repeat(const struct way *way, uint64_t place, uint64_t target)
{
    struct user_regs_struct registers;
    uint64_t text;
    uint64_t reached;
    uint64_t end = place;
    while (end < way->known && way->address[end] == way->address[place]) {
        end += 1;
    }
    uint64_t count = (target < end ? target : end) - place;
    if (count <= LEAP_MIN || get_registers(&registers) != 0 || registers.rip != way->address[place] ||
        read_text(registers.rip, &text) != 0 || !is_string_copy(text) || registers.rcx <= count) {
        return 2;
    }
    uint64_t left = registers.rcx - count;
    registers.rcx = count;
    if (ptrace(PTRACE_SETREGS, thread, NULL, &registers) != 0) {
        return fail("let it repeat");
    }
    if (run_to(way->address[end], way->address[way->length], &reached) != 0 ||
        get_registers(&registers) != 0) {
        return -1;
    }
    if (reached != way->address[end] || registers.rcx != 0) {
        errno = EFAULT;
        return fail("let it repeat so often");
    }
    registers.rip = way->address[place];
    registers.rcx = left;
    if (ptrace(PTRACE_SETREGS, thread, NULL, &registers) != 0) {
        return fail("give back what is left");
    }
    step_count += count;
    return 1;
}

static int leap_many(uint64_t count)
{
    uint64_t target = step_count + count;
    int is_going = 1;
    int was_syscall;
    pass_end();
    static const struct way unknown;
    const struct way *way = phase < PHASE_MAX ? &ways[phase] : &unknown;
    while (is_going > 0 && step_count < target) {
        uint64_t place = step_count - phase_begin;
        uint64_t to = landing(way, place, target - phase_begin);
        is_going = to > place ? leap(way, to) : repeat(way, place, target - phase_begin);
        if (is_going == 2) {
            is_going = step(place == 0, &was_syscall);
        }
    }
    if (is_going == -2) {
        printf("astray %" PRIu64 " 0 0\n", step_count);
        return 0;
    }
    return is_going < 0 ? -1 : say(is_going);
}

/* The last place of a way up to which another one is the same; those places are taken for the same, too, in what
 * they changed if that was not looked at. */
static uint64_t common(struct way *way, const struct way *other)
{
    uint64_t place = 0;
    uint64_t theirs = 0;
    while (place <= way->length) {
        if (is_of_vdso(way->address[place])) {
            place += 1;
        } else if (theirs <= other->length && is_of_vdso(other->address[theirs])) {
            theirs += 1;
        } else if (theirs > other->length || way->address[place] != other->address[theirs]) {
            break;
        } else {
            if (watch_count == 0) {
                way->has_changed[place] = other->has_changed[theirs];
            }
            place += 1;
            theirs += 1;
        }
    }
    return place == 0 ? 0 : place - 1;
}

static int compare_words(const void *left, const void *right)
{
    uint64_t a = **(const uint64_t *const *)left;
    uint64_t b = **(const uint64_t *const *)right;
    int is_later = *(const uint64_t *const *)left > *(const uint64_t *const *)right;
    return a != b ? (a > b ? 1 : -1) : (is_later ? 1 : -1);
}

/* Finds for each place the one before with the same address. */
static int link_places(struct way *way)
{
    uint64_t count = way->length + 1;
    const uint64_t **sorted = malloc(count * sizeof *sorted);
    if (sorted == NULL) {
        return fail("remember the way");
    }
    for (uint64_t i = 0; i < count; ++i) {
        sorted[i] = &way->address[i];
    }
    qsort(sorted, count, sizeof *sorted, compare_words);
    for (uint64_t i = 0; i < count; ++i) {
        int is_same = i != 0 && *sorted[i - 1] == *sorted[i];
        uint64_t previous = is_same ? 1 + (uint64_t)(sorted[i - 1] - way->address) : 0;
        way->previous[sorted[i] - way->address] = is_of_vdso(*sorted[i]) ? NOT_THERE : previous;
    }
    free(sorted);
    return 0;
}

static int learn(void)
{
    struct user_regs_struct registers;
    int is_going = 1;
    int was_syscall;
    pass_end();
    struct way way = {.address = malloc((WAY_MAX + 1) * sizeof *way.address),
                      .previous = malloc((WAY_MAX + 1) * sizeof *way.previous),
                      .has_changed = malloc(WAY_MAX + 1)};
    if (phase >= PHASE_MAX || way.address == NULL || way.previous == NULL || way.has_changed == NULL) {
        return fail("learn");
    }
    (void)is_changed();
    for (uint64_t place = 0; is_going > 0 && place < WAY_MAX; ++place) {
        if (get_registers(&registers) != 0) {
            return -1;
        }
        way.address[place] = registers.rip;
        is_going = step(place == 0, &was_syscall);
        /* Not in the vDSO, which changes nothing: a comparison lasts so long that its clock would always begin anew. */
        way.has_changed[place] =
            watch_count == 0 || (!is_of_vdso(registers.rip) && is_changed()) || was_syscall;
    }
    if (is_going != 0) {
        return is_going < 0 ? -1 : fail("learn");
    }
    way.length = step_count - phase_begin;
    way.has_changed[way.length] = 0;
    way.known = ways[phase].address != NULL ? common(&way, &ways[phase]) : way.length;
    free(ways[phase].address);
    free(ways[phase].previous);
    free(ways[phase].has_changed);
    ways[phase] = way;
    if (link_places(&way) != 0) {
        return -1;
    }
    printf("over %" PRIu64, step_count);
    for (uint64_t i = 0; i < way.length; ++i) {
        printf(" %" PRIu64 "%s", is_of_vdso(way.address[i]) ? 0 : way.address[i], way.has_changed[i] ? "*" : "");
    }
    printf("\n");
    return 0;
}

/* To the return of the function it stands in. */
static int finish(void)
{
    uint64_t reached;
    if (return_address == 0 || run_to(return_address, return_address, &reached) != 0) {
        return -1;
    }
    if (reached != return_address) {
        printf("error the function did not return\n");
        return -1;
    }
    printf("ok\n");
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
    printf("%s %" PRIu64 " 0 0\n", is_over ? "over" : "at", step_count);
    return 0;
}

static int let_go(int is_stopped)
{
    /* Pending when the thread is let go, it is taken before another instruction is. */
    if (is_stopped && syscall(SYS_tgkill, process, thread, SIGSTOP) != 0) {
        return fail("stop the process");
    }
    if (sched_setaffinity(thread, sizeof all_processors, &all_processors) != 0) {
        return fail("free its processor");
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
    unsigned rest_us;
    struct sigaction action = {.sa_handler = on_alarm}; /* no SA_RESTART: it ends a wait */
    if (sigaction(SIGALRM, &action, NULL) != 0 ||
        sched_getaffinity(0, sizeof all_processors, &all_processors) != 0) {
        return 1;
    }
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
        } else if (sscanf(line, "meet %" SCNu64 " %u", &number, &rest_us) == 2) {
            (void)meet(number, rest_us);
        } else if (sscanf(line, "leap %" SCNu64, &number) == 1) {
            (void)leap_many(number);
        } else if (strcmp(line, "learn\n") == 0) {
            (void)learn();
        } else if (strcmp(line, "finish\n") == 0) {
            (void)finish();
        } else if (strcmp(line, "begin\n") == 0) {
            begin();
            printf("ok\n");
        } else if (strcmp(line, "interrupt\n") == 0) {
            (void)interrupt();
        } else if (strcmp(line, "unwatch\n") == 0) {
            unwatch();
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
