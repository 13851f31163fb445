/* log_map.h: LogMap: where the CommitLog's files lie in this process, hot memory or complete file, and who
 * still looks at them.
 *
 * An entry is one file's bytes at one address for as long as anybody holds a pin on it; what lies behind the
 * address changes once, from hot memory to the complete file with the same bytes. Pins are counted in one
 * word together with the mark that the entry has left the table; whoever makes that word "left, no pins"
 * unmaps and frees, so neither a view's end nor the remap thread ever waits for the other. */
#ifndef SHMQ_BINDING_LOG_MAP_H
#define SHMQ_BINDING_LOG_MAP_H

#include "binding.h"

#include <pthread.h>

#define SHMQ_LOG_BUCKETS 64u
#define SHMQ_LOG_ENTRY_LEFT 0x80000000u /* out of the table: the last pin unmaps */

struct shmq_log_entry {
    const uint8_t *base;
    uint64_t file_position; /* physical_offset of base[0] */
    uint64_t size_bytes;
    shmq_word32 pins;       /* pins, and SHMQ_LOG_ENTRY_LEFT */
    shmq_word32 is_file;    /* 1 once a file lies behind it: what disks do to bytes, readers look for */
    int hot_fd;             /* the segment while it is hot, else -1; under the lock */
    uint64_t used;          /* stamp of the last lookup; under the lock */
    struct shmq_log_entry *next; /* in its bucket; under the lock */
};

/* One thread that waits for a file; on its stack, in a list under the lock. */
struct shmq_log_request {
    uint64_t file_position;
    int status; /* EMPTY until answered */
    struct shmq_log_request *next;
};

struct shmq_log_map {
    PyObject_HEAD
    struct shmq_module *module;
    uint64_t file_size_bytes;
    uint32_t cold_max; /* unpinned files that stay mapped */
    uint32_t fork_count;
    int closed;
    pthread_mutex_t lock; /* bounds: a lookup, an mmap or munmap call; never the GIL, a file or a peer */
    pthread_cond_t answered;
    struct shmq_log_entry *buckets[SHMQ_LOG_BUCKETS];
    struct shmq_log_request *requests;
    uint64_t used;
    uint64_t remap_count;
    uint64_t refused_count;
    /* the remap thread */
    pthread_t thread;
    int thread_started; /* under the GIL */
    int channel_fd;     /* ours, -1 while stopped */
    int stop_fd;        /* eventfd */
    shmq_word32 channel_open;
    int is_hot_known; /* this channel has named the first segment in memory; the remap thread's */
};

/* Pins the entry that holds a physical_offset, or NULL. Any thread. */
struct shmq_log_entry *shmq_log_map_pin(struct shmq_log_map *self, uint64_t physical_offset);

/* Another pin on an entry that is pinned already. */
static inline void shmq_log_entry_pin(struct shmq_log_entry *entry)
{
    /* relaxed: the caller's own pin keeps the entry */
    atomic_fetch_add_explicit(&entry->pins, 1, memory_order_relaxed);
}

/* Unmaps and frees an entry that has left the table and has no pin. */
void shmq_log_entry_free(struct shmq_log_entry *entry);

static inline void shmq_log_entry_unpin(struct shmq_log_entry *entry)
{
    /* release + acquire: pairs with the other unpins and with the mark: all reads are over before the unmap */
    if (atomic_fetch_sub_explicit(&entry->pins, 1, memory_order_acq_rel) == (SHMQ_LOG_ENTRY_LEFT | 1u)) {
        shmq_log_entry_free(entry);
    }
}

/* Asks the broker for a file and waits without the GIL: OK; OFFSET_TOO_SMALL: gone; TIMED_OUT; CLOSED: there
 * is no channel. 1 with an exception set if a signal handler raised. */
int shmq_log_map_request(struct shmq_log_map *self, uint64_t file_position, uint64_t timeout_ns);

#endif
