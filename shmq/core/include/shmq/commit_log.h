/* commit_log.h: the hot CommitLog: where a physical_offset lies in memory, append and roll.
 *
 * Byte table: frames as in message.h, back to back; each file of file_size_bytes ends with a BLANK frame of at
 * least 8 bytes. Hot slot of a file = its number modulo hot_slot_count.
 * Validity: bytes in [hot_min_position, committed_position) are frames; nobody reads past committed_position.
 * Writer algorithm (append role): write frames behind log_end, which is private until the turn commits;
 * where a frame and a BLANK no longer fit, put the BLANK and go on at the next file, if it is ready.
 * Reader algorithm: from a committed position step by total_size; at BLANK go to the next file.
 * Crash: bytes behind the committed position are overwritten by the successor; nothing refers to them. */
#ifndef SHMQ_COMMIT_LOG_H
#define SHMQ_COMMIT_LOG_H

#include "layout.h"
#include "message.h"
#include "status.h"

/* A BLANK frame needs this much behind the last frame of a file. */
#define SHMQ_BLANK_ROOM 8u

/* Process-private view. */
struct shmq_commit_log {
    uint8_t *bases[SHMQ_HOT_SLOT_MAX];          /* by hot slot; NULL while not mapped */
    uint64_t file_positions[SHMQ_HOT_SLOT_MAX]; /* physical_offset of bases[i][0] */
    uint64_t file_size_bytes;
    uint32_t hot_slot_count;
    uint32_t reserved;
    uint64_t log_end;          /* behind the last frame written, committed or not */
    uint8_t *claim_base;       /* of the file claimed from last, NULL if none: saves divisions */
    uint64_t claim_position;   /* its first physical_offset */
    uint32_t claim_slot;
    shmq_word64 ready_end;     /* files below it have memory and a file on disk prepared */
};

static inline uint32_t shmq_commit_log_slot(const struct shmq_commit_log *log, uint64_t physical_offset)
{
    return (uint32_t)(physical_offset / log->file_size_bytes % log->hot_slot_count);
}

/* Address of a physical_offset in hot memory, or NULL if that file is not in its slot. */
static inline uint8_t *shmq_commit_log_at(const struct shmq_commit_log *log, uint64_t physical_offset)
{
    uint32_t slot = shmq_commit_log_slot(log, physical_offset);
    uint64_t begin = physical_offset - physical_offset % log->file_size_bytes;
    if (log->bases[slot] == NULL || log->file_positions[slot] != begin) {
        return NULL;
    }
    return log->bases[slot] + (physical_offset - begin);
}

/* Where the frames behind the one at hand will lie is fetched into the cache while that one is made: an append
 * reads back what it has just written, and with the lines still in memory each such read would wait for them.
 * Measured (bench/README.md): 2 KiB ahead is best from 100 B to 4 KiB, beyond that the processor sees it coming. */
#define SHMQ_FETCH_AHEAD 2048u
#define SHMQ_FETCH_MAX 4096u

/* Any address is harmless, also behind the file's end. */
static inline void shmq_commit_log_fetch(const uint8_t *frame, uint32_t size)
{
    for (uint32_t ahead = 0; ahead < size && ahead < SHMQ_FETCH_MAX; ahead += 64) {
        __builtin_prefetch((const void *)((uintptr_t)frame + SHMQ_FETCH_AHEAD + ahead), 1, 3);
    }
}

/* Address for a frame of `size` bytes at log_end, rolling to the next file if need be. OK; LOG_FULL: the
 * next file is not ready; TOO_LARGE: no file could hold it. *rolled counts BLANK frames written. */
static inline int shmq_commit_log_claim(struct shmq_commit_log *log, uint32_t size, uint8_t **out,
                                        uint32_t *rolled)
{
    if ((uint64_t)size + SHMQ_BLANK_ROOM > log->file_size_bytes) {
        return SHMQ_TOO_LARGE;
    }
    /* acquire: pairs with the release in shmq_append_ready; the prepared memory is mapped */
    uint64_t ready_end = shmq_load_acquire(&log->ready_end);
    uint64_t place = log->log_end - log->claim_position;
    if (place <= log->file_size_bytes - SHMQ_BLANK_ROOM - size && log->claim_base != NULL &&
        log->bases[log->claim_slot] == log->claim_base &&
        log->file_positions[log->claim_slot] == log->claim_position && log->log_end < ready_end) {
        *out = log->claim_base + place;
        return SHMQ_OK;
    }
    uint64_t room = log->file_size_bytes - log->log_end % log->file_size_bytes;
    if ((uint64_t)size + SHMQ_BLANK_ROOM > room) {
        uint64_t next = log->log_end + room;
        uint8_t *at = shmq_commit_log_at(log, log->log_end);
        if (next >= ready_end || at == NULL || shmq_commit_log_at(log, next) == NULL) {
            return SHMQ_LOG_FULL;
        }
        (void)shmq_message_put_blank(at, (uint32_t)room); /* each append leaves it room */
        /* reused memory holds frames of long ago: the file's last bytes shall be zeros */
        memset(at + SHMQ_BLANK_ROOM, 0, room - SHMQ_BLANK_ROOM);
        log->log_end = next;
        *rolled += 1;
    }
    if (log->log_end >= ready_end) {
        return SHMQ_LOG_FULL;
    }
    *out = shmq_commit_log_at(log, log->log_end);
    if (*out == NULL) {
        return SHMQ_LOG_FULL;
    }
    log->claim_slot = shmq_commit_log_slot(log, log->log_end);
    log->claim_position = log->file_positions[log->claim_slot];
    log->claim_base = log->bases[log->claim_slot];
    return SHMQ_OK;
}

#endif
