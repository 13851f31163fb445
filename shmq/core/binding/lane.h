/* lane.h: Lane: the producer's side of one ring, as its loans see it too. */
#ifndef SHMQ_BINDING_LANE_H
#define SHMQ_BINDING_LANE_H

#include "body.h"
#include "chunk.h"
#include "properties.h"
#include "sleepers.h"
#include "unique_key.h"

/* A timeout that becomes a deadline when somebody first has to wait. */
struct shmq_wait {
    uint64_t timeout_ns;
    uint64_t deadline_ns; /* monotonic; 0: nobody has waited yet */
    int is_quiet;         /* of shmq_sleep */
};

static inline uint64_t shmq_wait_deadline(struct shmq_wait *wait)
{
    if (wait->deadline_ns == 0) {
        wait->deadline_ns = shmq_clock_ns(CLOCK_MONOTONIC) + wait->timeout_ns;
    }
    return wait->deadline_ns;
}

/* One record to be sent; everything in it is checked. */
struct shmq_lane_record {
    const uint8_t *body; /* NULL: the caller fills it */
    uint64_t body_size;
    const uint8_t *properties;
    uint32_t properties_size; /* without the unique key unless has_unique_key */
    int has_unique_key;
    uint32_t delay_level; /* of its DELAY property, 0 without */
    uint32_t queue_row;
    uint32_t row_generation;
    int32_t flag;
    int is_waiting; /* SHMQ_RECORD_WAIT */
    int is_kept;    /* its completion will be fetched */
};

/* Where a record goes: in the ring, its body there or in the chunk memory. */
struct shmq_lane_place {
    uint8_t *record;
    uint8_t *body;
    uint32_t kind; /* SHMQ_RECORD_MESSAGE or _LARGE */
    uint64_t chunk_place;
    uint64_t chunk_ticket;
    struct shmq_chunk *chunk; /* _LARGE: alive as long as the caller's turn */
};

/* What only a service of the broker says of its next record (lane.c set_service). */
struct shmq_lane_service {
    uint64_t progress;
    int64_t born_timestamp; /* 0: now */
    int32_t sys_flag;
    int32_t reconsume_times;
    uint32_t service_index;
};

struct shmq_lane_object {
    PyObject_HEAD
    struct shmq_module *module;
    struct shmq_lane_writer writer;
    struct shmq_mapping *control;
    struct shmq_mapping *ingress;
    struct shmq_mapping *completion;
    struct shmq_chunk *chunk; /* NULL until one was granted */
    uint32_t session;
    uint32_t lane;
    uint32_t policy;
    uint32_t property_grants;
    uint32_t message_size_max;
    uint32_t is_service;
    struct shmq_lane_service service;
    uint32_t fork_count;
    int closed;
    /* One thread fills at a time. The GIL sees to that but where it is let go of with a claim in hand: then busy
     * is up, and whoever wants to fill waits for its turn. */
    int busy;
    unsigned long busy_thread;
    uint32_t busy_waiters;
    shmq_word32 busy_bell;
    struct shmq_mapping *held[4]; /* while busy: what the GIL-less part may touch */
    struct shmq_chunk *held_chunk;
    struct shmq_sleepers sleepers;
    uint32_t armed; /* shmq_sleepers_arm; with the GIL */
    shmq_word32 changes; /* counts what a waiter must get up for beside the broker's words; bumped with the GIL */
    uint64_t *kept; /* bit sequence & mask: somebody will fetch that completion */
    uint64_t *ids;  /* id of the unique key of sequence & mask */
    uint64_t *put_ns; /* CLOCK_REALTIME when sequence & mask was put */
    struct shmq_latency *latency; /* ours to write, with the GIL: from put until somebody has the completion */
    struct shmq_unique_keys unique_keys;
};

/* Waits until nobody fills and takes the turn; the memory stays mapped until shmq_lane_leave. Status, or 1 with
 * an exception. */
int shmq_lane_enter(struct shmq_lane_object *self, struct shmq_wait *wait);
void shmq_lane_leave(struct shmq_lane_object *self);

/* Room for a record, in the caller's turn: waits for it. Status, or 1 with an exception. */
int shmq_lane_claim_wait(struct shmq_lane_object *self, uint64_t body_size, uint32_t properties_size,
                         struct shmq_wait *wait, struct shmq_lane_place *place);

/* Completes the claimed record, whose body is in place; now_ns of CLOCK_REALTIME. Its sequence; shmq_lane_publish makes
 * it the broker's. */
uint64_t shmq_lane_write(struct shmq_lane_object *self, const struct shmq_lane_record *record,
                         const struct shmq_lane_place *place, uint64_t now_ns);

/* Claims, copies and writes one record, and publishes it. Status, or 1 with an exception. */
int shmq_lane_put(struct shmq_lane_object *self, const struct shmq_lane_record *record, struct shmq_wait *wait,
                  uint64_t *sequence);

/* Room now, in the caller's turn or with the GIL held throughout; FULL: not now. Else as shmq_lane_claim_wait. */
int shmq_lane_claim_now(struct shmq_lane_object *self, uint64_t body_size, uint32_t properties_size,
                        struct shmq_lane_place *place);

static inline uint32_t shmq_lane_properties_size(const struct shmq_lane_record *record)
{
    return record->properties_size + (record->has_unique_key ? 0 : SHMQ_UNIQUE_PROPERTY_SIZE);
}

/* ClosedError or ForkError, and -1. */
int shmq_lane_check(struct shmq_lane_object *self, const char *what);

/* What put and its kin take, in this order. */
enum shmq_lane_argument {
    SHMQ_LANE_ROW,
    SHMQ_LANE_GENERATION,
    SHMQ_LANE_BODY, /* or bodies, or a size */
    SHMQ_LANE_TAG,
    SHMQ_LANE_KEYS,
    SHMQ_LANE_PROPERTIES,
    SHMQ_LANE_FLAG,
    SHMQ_LANE_WAIT,
    SHMQ_LANE_TIMEOUT,
    SHMQ_LANE_KEEP,
    SHMQ_LANE_ARGUMENTS
};

/* A call of put or its kin: its record checked, its properties encoded. Lives on the stack of that call. */
struct shmq_lane_call {
    struct shmq_lane_record record;
    struct shmq_wait wait;
    struct shmq_property_parts parts;
    struct shmq_property_bytes encoded;
};

/* Everything but body and properties. -1 with an exception. */
int shmq_lane_call_begin(struct shmq_lane_object *self, PyObject *const *given, struct shmq_lane_call *call);

/* Encodes the properties of call->parts. -1 with an exception. */
int shmq_lane_call_properties(struct shmq_lane_call *call);

/* MessageTooLargeError, and -1, for a body that the store would refuse. */
int shmq_lane_check_size(const struct shmq_lane_object *self, uint64_t body_size);

/* The same as put() with these arguments: a status, or 1 with an exception. CLOSED where the lane is. */
int shmq_lane_put_now(struct shmq_lane_object *self, PyObject *const *given);

PyObject *shmq_lane_put_many(struct shmq_lane_object *self, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames);
PyObject *shmq_lane_loan(struct shmq_lane_object *self, PyObject *const *args, Py_ssize_t nargs,
                         PyObject *kwnames);

int shmq_add_loan(PyObject *module);
int shmq_add_chunk(PyObject *module);
int shmq_add_oneway(PyObject *module);

#endif
