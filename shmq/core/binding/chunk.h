/* chunk.h: ChunkMemory: where bodies too large for a ring wait for the broker. */
#ifndef SHMQ_BINDING_CHUNK_H
#define SHMQ_BINDING_CHUNK_H

#include "binding.h"

/* One body's room, from claim until the broker has appended it. */
struct shmq_chunk_claim {
    uint64_t end;      /* position behind it */
    uint64_t sequence; /* of its record; UINT64_MAX until it is committed */
    uint32_t lane;
    uint32_t is_free;
};

/* A byte ring like a lane's, shared by the lanes of a session, freed in order. Under the GIL. */
struct shmq_chunk {
    PyObject_HEAD
    struct shmq_mapping *control;
    struct shmq_mapping *memory;
    uint64_t capacity; /* bytes for bodies */
    uint64_t head;     /* below it all is free */
    uint64_t tail;
    struct shmq_chunk_claim *claims; /* a ring of claim_room */
    uint64_t claim_head;
    uint64_t claim_tail;
    uint64_t claim_room; /* a power of two */
    uint32_t session;
    uint32_t fork_count;
};

/* Room for `size` bytes: *ticket, and *place in the chunk memory. FULL; TOO_LARGE: never; 1 with an exception. */
int shmq_chunk_claim(struct shmq_chunk *self, uint64_t size, uint64_t *ticket, uint64_t *place);

/* The record that refers to it is committed, under this sequence of this lane. */
void shmq_chunk_commit(struct shmq_chunk *self, uint64_t ticket, uint32_t lane, uint64_t sequence);

/* No record will refer to it. */
void shmq_chunk_abort(struct shmq_chunk *self, uint64_t ticket);

/* Whether the next room to become free is that of another lane's record: its bell rings for that lane. */
static inline int shmq_chunk_is_foreign(const struct shmq_chunk *self, uint32_t lane)
{
    const struct shmq_chunk_claim *claim = &self->claims[self->claim_head & (self->claim_room - 1)];
    return self->claim_head != self->claim_tail && (claim->lane != lane || claim->sequence == UINT64_MAX);
}

static inline uint8_t *shmq_chunk_at(const struct shmq_chunk *self, uint64_t place)
{
    return self->memory->base + SHMQ_CHUNK_DATA_PLACE + place;
}

#endif
