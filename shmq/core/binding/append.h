/* append.h: the Appender object, as the flusher sees it too. */
#ifndef SHMQ_BINDING_APPEND_H
#define SHMQ_BINDING_APPEND_H

#include "binding.h"

#include <pthread.h>

/* What the append thread asks its keeper (the preparer thread) for. */
#define SHMQ_EVENT_HOT 0x1u     /* prepare the next file and its memory */
#define SHMQ_EVENT_ARENA 0x2u   /* grow the ConsumeQueue arena, or trim it */
#define SHMQ_EVENT_SESSION 0x4u /* a session broke a rule and was ended */
#define SHMQ_EVENT_STOP 0x8u    /* somebody called stop_events */

enum shmq_flusher_state {
    SHMQ_FLUSHER_AWAKE = 0,
    SHMQ_FLUSHER_IDLE = 1, /* everything is flushed: wake it at the next commit */
    SHMQ_FLUSHER_NAPS = 2, /* gathers a group: wake it if somebody waits for the disk */
};

struct shmq_appender {
    PyObject_HEAD
    struct shmq_append append;
    PyObject *control;       /* Mapping */
    PyObject *topics;        /* Mapping */
    PyObject *arena;         /* Mapping */
    PyObject **hot;          /* Mapping by hot slot */
    PyObject **memories;     /* 4 Mappings per session: ingress, completion, consumer, chunk */
    uint64_t **grants;       /* bitmap per session */
    uint32_t *grant_rows;
    int *event_fds;          /* dup'ed, per session, -1 if none */
    int *sockets;            /* dup'ed, per session, -1 if none */
    uint32_t *subscription_free;
    uint32_t subscription_free_count;
    uint32_t subscription_max;
    uint32_t arena_low;      /* ask for more below this many free blocks */
    uint8_t *topics_base;
    int epoll_fd;
    int wake_fd;             /* our own eventfd */
    uint32_t policy;
    uint32_t fork_count;
    pthread_mutex_t role;    /* held by whoever has the append role; free while the thread sleeps */
    shmq_word32 wanted;      /* control verbs waiting for the role */
    shmq_word32 stop;
    shmq_word32 running;
    shmq_word32 events;      /* SHMQ_EVENT_* bits */
    shmq_word32 event_bell;  /* futex word of the preparer */
    shmq_word32 flusher_state;
    shmq_word32 flusher_bell; /* futex word of the flusher */
    shmq_word32 sync_wanted; /* 1 while somebody waits for the disk */
    uint64_t unflushed_max;  /* the flusher gathers no larger group */
    uint64_t hot_asked;      /* ready_end for which SHMQ_EVENT_HOT was raised */
    int arena_asked;
    int closed;
};

/* The append thread sleeps and must look again: flushed_position moved. */
void shmq_appender_nudge(struct shmq_appender *self);

#endif
