/* slice.h: how long the scheduler lets a thread run at a time. */
#ifndef SHMQ_BINDING_SLICE_H
#define SHMQ_BINDING_SLICE_H

#include "binding.h"

/* Asks for slices of that many ns for the thread that calls: with shorter ones than others have it runs sooner after
 * it was woken. A wish: Linux before 6.12 does not look at it, and a filter of system calls may refuse it. */
void shmq_slice_ask(uint64_t slice_ns);

#endif
