/* changing_memory.h: memory that changes behind every single instruction that reads it.
 *
 * What a hostile process might do between any two reads is done here, always: the region is not
 * accessible; the fault of an instruction lets it through with the trap flag set, and the trap
 * after it rewrites the whole region and locks it again. Whoever reads a byte twice gets two
 * values. x86-64 only, as the trap flag is, and not under ThreadSanitizer, which keeps signals
 * back: CHANGING_MEMORY says whether it is there. Define _GNU_SOURCE before the first include. */
#ifndef SHMQ_TEST_CHANGING_MEMORY_H
#define SHMQ_TEST_CHANGING_MEMORY_H

#include "check.h"

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#define CHANGING_MEMORY 1

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#define CHANGING_SIZE 65536u
#define CHANGING_TRAP_FLAG 0x100

static uint8_t *changing_memory;      /* CHANGING_SIZE bytes, after changing_memory_open() */
static uint32_t changing_read_count;  /* instructions that read it so far */
static const char *changing_alphabet; /* the bytes it is made of, if any bytes will not do */
static const char *changing_text;     /* what it repeats, but for a byte here and there, if not NULL */

static void changing_rewrite(void)
{
    size_t alphabet_size = changing_alphabet != NULL ? strlen(changing_alphabet) : 0;
    size_t text_size = changing_text != NULL ? strlen(changing_text) : 0;
    for (size_t i = 0; i < CHANGING_SIZE; i++) {
        uint32_t dice = (changing_read_count + 1) * 2654435761u + (uint32_t)i * 40503u;
        dice >>= 16;
        changing_memory[i] = (uint8_t)dice;
        if (alphabet_size != 0)
            changing_memory[i] = (uint8_t)changing_alphabet[dice % alphabet_size];
        if (text_size != 0 && (dice >> 4) % (2 * text_size) != 0)
            changing_memory[i] = (uint8_t)changing_text[i % text_size];
    }
}

static void changing_on_fault(int number, siginfo_t *info, void *context)
{
    uint8_t *at = info->si_addr;
    if (at < changing_memory || at >= changing_memory + CHANGING_SIZE) {
        signal(number, SIG_DFL); /* a fault like any other: the instruction faults again and dies */
        return;
    }
    mprotect(changing_memory, CHANGING_SIZE, PROT_READ | PROT_WRITE);
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] |= CHANGING_TRAP_FLAG;
}

static void changing_on_trap(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    changing_read_count++;
    changing_rewrite();
    mprotect(changing_memory, CHANGING_SIZE, PROT_NONE);
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~CHANGING_TRAP_FLAG;
}

static inline void changing_memory_open(const char *alphabet)
{
    struct sigaction action = {.sa_flags = SA_SIGINFO};
    changing_alphabet = alphabet;
    changing_memory =
        mmap(NULL, CHANGING_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(changing_memory != MAP_FAILED);
    changing_rewrite();
    action.sa_sigaction = changing_on_fault;
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
    action.sa_sigaction = changing_on_trap;
    CHECK(sigaction(SIGTRAP, &action, NULL) == 0);
    CHECK(mprotect(changing_memory, CHANGING_SIZE, PROT_NONE) == 0);
}

static inline void changing_memory_close(void)
{
    signal(SIGSEGV, SIG_DFL);
    signal(SIGTRAP, SIG_DFL);
    CHECK(munmap(changing_memory, CHANGING_SIZE) == 0);
}

#endif
#endif
