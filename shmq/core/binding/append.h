/* append.h: the Appender object, as the flusher sees it too. */
#ifndef SHMQ_BINDING_APPEND_H
#define SHMQ_BINDING_APPEND_H

#include "binding.h"
#include "log_map.h"

#include "shmq/replica.h"

#include <pthread.h>

enum shmq_memory_kind {
    SHMQ_MEMORY_INGRESS,
    SHMQ_MEMORY_COMPLETION,
    SHMQ_MEMORY_CONSUMER,
    SHMQ_MEMORY_CHUNK,
    SHMQ_MEMORY_KINDS
};

/* What the append thread asks its keeper (the preparer thread) for. */
#define SHMQ_EVENT_HOT 0x1u     /* prepare the next file and its memory */
#define SHMQ_EVENT_ARENA 0x2u   /* grow the ConsumeQueue arena, or trim it */
#define SHMQ_EVENT_SESSION 0x4u /* a session broke a rule and was ended */
#define SHMQ_EVENT_STOP 0x8u    /* somebody called stop_events */
#define SHMQ_EVENT_REPLICA 0x10u /* a replica turn needs something: replica_need says what */

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
    PyObject **memories;     /* SHMQ_MEMORY_KINDS Mappings per session; changed with the GIL */
    uint64_t **grants;       /* bitmap per session */
    uint32_t *grant_rows;
    PyObject *stats;         /* Mapping, NULL if there is none */
    struct shmq_lane_seen *lane_seen; /* session_slot_count * SHMQ_LANE_MAX */
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
    uint32_t is_slave;     /* takes no message: copies its master's log while it follows one */
    uint32_t is_following; /* source is open */
    struct shmq_replica_source source;
    PyObject *source_control;             /* Mapping */
    struct shmq_log_map *source_log;      /* where the master's files are mapped */
    struct shmq_log_entry *source_entry;  /* pinned: the one that source.base lies in, or NULL */
    int source_socket;                    /* dup'ed: the master's pokes, -1 if none */
    uint32_t need_asked;                  /* SHMQ_EVENT_REPLICA was raised for source.need */
    struct shmq_replica_set replicas;
    PyObject *replica_controls[SHMQ_REPLICA_MAX]; /* Mappings */
    int replica_sockets[SHMQ_REPLICA_MAX];        /* dup'ed */
};

/* Takes over the append role between two turns, and gives it back. Without the GIL. */
void shmq_role_take(struct shmq_appender *self);
void shmq_role_give(struct shmq_appender *self);

/* -1 with an exception: the Appender is closed, or another process's. */
int shmq_appender_open(struct shmq_appender *self, const char *what);

/* Tells the keeper. */
void shmq_appender_raise_event(struct shmq_appender *self, uint32_t bits);

/* ---- stats.c ------------------------------------------------------------------------------------------- */

/* What the producers of a session have counted so far is not ours; what they count from now on is. With the GIL. */
void shmq_appender_begin_counts(struct shmq_appender *self, uint32_t session);

/* Takes what they have counted since the last look. With the GIL. */
void shmq_appender_take_counts(struct shmq_appender *self, uint32_t session);

PyObject *shmq_appender_set_stats(struct shmq_appender *self, PyObject *argument);
PyObject *shmq_appender_look(struct shmq_appender *self, PyObject *ignored);

/* ---- replica.c ----------------------------------------------------------------------------------------- */

/* A replica turn, as far as one is possible now; what it took. In the append thread, under the role. */
uint32_t shmq_appender_copy(struct shmq_appender *self, uint64_t now_ns);

/* The master's pokes are taken; in the append thread. */
void shmq_appender_take_pokes(struct shmq_appender *self);

/* Lets go of the master and of the slaves; nobody has the role, nor wants it. */
void shmq_appender_release_replicas(struct shmq_appender *self);

PyObject *shmq_appender_set_slave(struct shmq_appender *self, PyObject *argument);
PyObject *shmq_appender_follow(struct shmq_appender *self, PyObject *args, PyObject *kwargs);
PyObject *shmq_appender_unfollow(struct shmq_appender *self, PyObject *ignored);
PyObject *shmq_appender_replica_need(struct shmq_appender *self, PyObject *ignored);
PyObject *shmq_appender_replica_go_on(struct shmq_appender *self, PyObject *ignored);
PyObject *shmq_appender_add_replica(struct shmq_appender *self, PyObject *args);
PyObject *shmq_appender_remove_replica(struct shmq_appender *self, PyObject *argument);
PyObject *shmq_appender_set_replica(struct shmq_appender *self, PyObject *args);
PyObject *shmq_appender_confirm(struct shmq_appender *self, PyObject *args, PyObject *kwargs);

/* The append thread sleeps and must look again: flushed_position moved. */
void shmq_appender_nudge(struct shmq_appender *self);

#endif
