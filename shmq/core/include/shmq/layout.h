/* layout.h: every structure that two processes share, once.
 *
 * Byte table: the SHMQ_*_FIELDS tables below. Each row is F(place, type, name, count, doc); from it come the
 * struct, the static asserts on place and size, the LAYOUT that Python sees, the numpy dtypes of the
 * tools and the pages in docs/formats. Padding is a field like any other, is zero and is checked.
 * Validity: a segment is valid when its first word is its kind's magic (stored last, with release) and
 * layout_version is SHMQ_LAYOUT_VERSION. Nothing else about it may be believed before that.
 * Writer: each doc names its one writer. "append role" is the append thread, or a control verb that has
 * stopped that thread between two turns (never both). "client" words lie in sealed memfds and are
 * hostile: whoever reads one loads it once into a local and range-checks the local.
 * Reader: any process that was passed the fd; all but the writer map read-only.
 * Crash: no structure needs a lock to be read, and each follows the turn record (turn.h), so a reader
 * never meets a half-written one that it could mistake for a whole one. The successor of a dead broker
 * repairs by redoing the last turn. */
#ifndef SHMQ_LAYOUT_H
#define SHMQ_LAYOUT_H

#include "atomics.h"

#include <stddef.h>
#include <stdint.h>

#define SHMQ_LAYOUT_VERSION 2

/* Two cache lines: adjacent-line prefetch pulls lines in pairs, so words of different writers keep this
 * distance (Aeron pads the same way). */
#define SHMQ_LINE 128u
#define SHMQ_PAGE 4096u

/* How many rings one turn may touch: bounds the turn record. */
#define SHMQ_TURN_RING_MAX 64u
#define SHMQ_SERVICE_MAX 96u
#define SHMQ_HOT_SLOT_MAX 64u
/* Ingress rings ("lanes") of one session: one per sending thread, shared by more threads than that. */
#define SHMQ_LANE_MAX 4u
/* Bells of one session: one for each lane, then one for each consumer thread. */
#define SHMQ_CONSUMER_BELL_MAX 4u
#define SHMQ_BELL_MAX (SHMQ_LANE_MAX + SHMQ_CONSUMER_BELL_MAX)
#define SHMQ_TOPIC_SIZE_MAX 255u

/* "shmq" + kind, as eight ASCII bytes. A hot segment has no head: it holds the very bytes of its file, so
 * that the file can be mapped over it; what it holds is said by its hot slot in the control segment. */
#define SHMQ_MAGIC_CONTROL 0x6c727463716d6873u    /* shmqctrl */
#define SHMQ_MAGIC_TOPICS 0x63706f74716d6873u     /* shmqtopc */
#define SHMQ_MAGIC_ARENA 0x616e7261716d6873u      /* shmqarna */
#define SHMQ_MAGIC_COMPLETION 0x706d6f63716d6873u /* shmqcomp */
#define SHMQ_MAGIC_INGRESS 0x72676e69716d6873u    /* shmqingr */
#define SHMQ_MAGIC_CONSUMER 0x736e6f63716d6873u   /* shmqcons */
#define SHMQ_MAGIC_CHUNK 0x6b6e6863716d6873u      /* shmqchnk */
#define SHMQ_MAGIC_STATS 0x74617473716d6873u      /* shmqstat */

enum shmq_segment_kind {
    SHMQ_KIND_CONTROL = 1,
    SHMQ_KIND_TOPICS = 2,
    SHMQ_KIND_HOT = 3,
    SHMQ_KIND_ARENA = 4,
    SHMQ_KIND_COMPLETION = 5,
    SHMQ_KIND_INGRESS = 6,
    SHMQ_KIND_CONSUMER = 7,
    SHMQ_KIND_CHUNK = 8,
    SHMQ_KIND_STATS = 9,
};

#define SHMQ_STRUCT_FIELD(place, type, name, count, doc) SHMQ_DECLARE_##count(type, name);
#define SHMQ_ASSERT_FIELD(place, type, name, count, doc)                                           \
    _Static_assert(offsetof(struct SHMQ_OF, name) == (place), #name " is not at " #place);

#define SHMQ_DECLARE_1(type, name) type name
#define SHMQ_DECLARE_4(type, name) type name[4]
#define SHMQ_DECLARE_5(type, name) type name[5]
#define SHMQ_DECLARE_6(type, name) type name[6]
#define SHMQ_DECLARE_8(type, name) type name[8]
#define SHMQ_DECLARE_9(type, name) type name[9]
#define SHMQ_DECLARE_10(type, name) type name[10]
#define SHMQ_DECLARE_11(type, name) type name[11]
#define SHMQ_DECLARE_12(type, name) type name[12]
#define SHMQ_DECLARE_13(type, name) type name[13]
#define SHMQ_DECLARE_14(type, name) type name[14]
#define SHMQ_DECLARE_15(type, name) type name[15]
#define SHMQ_DECLARE_16(type, name) type name[16]
#define SHMQ_DECLARE_20(type, name) type name[20]
#define SHMQ_DECLARE_24(type, name) type name[24]
#define SHMQ_DECLARE_28(type, name) type name[28]
#define SHMQ_DECLARE_31(type, name) type name[31]
#define SHMQ_DECLARE_64(type, name) type name[64]
#define SHMQ_DECLARE_256(type, name) type name[256]

/* ---- the head of every segment ------------------------------------------------------------------ */
#define SHMQ_SEGMENT_HEADER_FIELDS(F)                                                              \
    F(0, shmq_word64, magic, 1, "the kind's magic, stored last with release")                      \
    F(8, uint32_t, layout_version, 1, "SHMQ_LAYOUT_VERSION of the writer")                         \
    F(12, uint32_t, kind, 1, "enum shmq_segment_kind")                                             \
    F(16, shmq_word64, size_bytes, 1, "bytes allocated; grows, never shrinks")                     \
    F(24, uint64_t, store_generation, 1, "random id of this store's memory since it was made")     \
    F(32, uint8_t, boot_id, 16, "kernel boot id: memory of another boot is never adopted")         \
    F(48, uint32_t, owner_pid, 1, "incarnation of the owner: process id; rewritten on adoption")   \
    F(52, uint32_t, owner_uid, 1, "uid that may write")                                            \
    F(56, uint64_t, owner_start_time, 1, "incarnation: process start, clock ticks since boot")     \
    F(64, uint64_t, master_epoch, 1, "epoch of the mastership under which it is written")          \
    F(72, uint64_t, number, 1, "ordinal among its kind; of an ingress ring its session slot")      \
    F(80, uint64_t, reserved, 6, "zero")

/* ---- control segment ---------------------------------------------------------------------------- */
#define SHMQ_CONTROL_CONFIG_FIELDS(F)                                                              \
    F(0, uint64_t, file_size_bytes, 1, "size of a CommitLog file and of a hot segment's data")     \
    F(8, uint64_t, turn_records_place, 1, "byte place of the two turn records in this segment")    \
    F(16, uint64_t, hot_slots_place, 1, "byte place of the hot slots")                             \
    F(24, uint64_t, service_slots_place, 1, "byte place of the service slots")                     \
    F(32, uint64_t, session_slots_place, 1, "byte place of the session slots")                     \
    F(40, uint64_t, ring_slots_place, 1, "byte place of the ring slots, LANE_MAX per session")     \
    F(48, uint64_t, queue_rows_place, 1, "byte place of the queue rows; they grow to the end")     \
    F(56, uint32_t, hot_slot_count, 1, "hot segments")                                             \
    F(60, uint32_t, session_slot_count, 1, "sessions at most")                                     \
    F(64, uint32_t, queue_row_max, 1, "queue rows at most, as address space is reserved")          \
    F(68, uint32_t, topic_row_max, 1, "topic rows at most, as address space is reserved")          \
    F(72, uint32_t, arena_block_max, 1, "arena blocks at most, as address space is reserved")      \
    F(76, uint32_t, message_size_max, 1, "maxMessageSize: largest body in bytes")                  \
    F(80, uint8_t, store_host, 8, "IPv4 and port written into every record (big-endian)")          \
    F(88, uint64_t, reserved, 5, "zero")

/* Written by the append role. turn_number is the only commit point of the store. */
#define SHMQ_APPEND_POSITIONS_FIELDS(F)                                                            \
    F(0, shmq_word64, turn_number, 1, "last committed turn; record turn_number & 1 describes it")  \
    F(8, shmq_word64, committed_position, 1, "physical_offset behind the last committed frame")    \
    F(16, shmq_word64, min_position, 1, "first physical_offset kept, in memory or in files")       \
    F(24, shmq_word64, hot_min_position, 1, "first physical_offset in hot memory")                 \
    F(32, shmq_word64, store_timestamp, 1, "of the last turn, ms since 1970; never goes back")     \
    F(40, shmq_word32, queue_row_count, 1, "queue rows in use or deleted")                         \
    F(44, shmq_word32, topic_row_count, 1, "topic rows in use or deleted")                         \
    F(48, shmq_word32, arena_block_count, 1, "arena blocks allocated in memory, block 0 included") \
    F(52, shmq_word32, store_status, 1, "0, or the positive status why sends are refused")         \
    F(56, uint64_t, reserved, 9, "zero")

#define SHMQ_FLUSH_POSITIONS_FIELDS(F)                                                             \
    F(0, shmq_word64, flushed_position, 1, "bytes below it are on disk (fdatasync returned)")      \
    F(8, shmq_word64, written_position, 1, "bytes below it were handed to the kernel (pwrite)")    \
    F(16, shmq_word64, flush_count, 1, "fdatasync calls that returned")                            \
    F(24, shmq_word64, flush_ns, 1, "nanoseconds spent in them")                                   \
    F(32, shmq_word64, flush_ns_last, 1, "nanoseconds of the last one")                            \
    F(40, shmq_word64, files_owner, 1, "broker_id + 1 of the member whose files these are; 0: nobody's yet") \
    F(48, uint64_t, reserved, 10, "zero")

#define SHMQ_REPLICA_POSITIONS_FIELDS(F)                                                           \
    F(0, shmq_word64, confirmed_position, 1, "least position of the SyncStateSet (confirm_offset)") \
    F(8, shmq_word32, confirm_wanted, 1, "1 while the append thread sleeps and somebody waits for it") \
    F(12, uint32_t, reserved, 1, "zero")                                                           \
    F(16, uint64_t, reserved_words, 14, "zero")

#define SHMQ_SLEEP_LINE_FIELDS(F)                                                                  \
    F(0, shmq_word32, append_sleeps, 1, "odd while the append thread sleeps in epoll, each time another")               \
    F(4, uint32_t, reserved, 31, "zero")

/* Written by the append role; read by exporters and tools without asking anybody. */
#define SHMQ_COUNTERS_FIELDS(F)                                                                    \
    F(0, shmq_word64, turns, 1, "turns committed")                                                 \
    F(8, shmq_word64, messages_in, 1, "messages appended")                                         \
    F(16, shmq_word64, bytes_in, 1, "bytes appended, frames as in the CommitLog")                  \
    F(24, shmq_word64, records_refused, 1, "records answered with an error status")                \
    F(32, shmq_word64, sessions_ended, 1, "sessions ended for a broken rule")                      \
    F(40, shmq_word64, wakeups_sent, 1, "bells rung")                                              \
    F(48, shmq_word64, sleeps, 1, "times the append thread slept")                                 \
    F(56, shmq_word64, files_rolled, 1, "CommitLog files begun")                                   \
    F(64, shmq_word64, log_full_turns, 1, "turns cut short for lack of a free hot segment")        \
    F(72, shmq_word64, arena_full_turns, 1, "turns cut short for lack of ConsumeQueue blocks")     \
    F(80, uint64_t, reserved, 6, "zero")

/* A turn record is filled, then turn_number is released; two alternate. */
#define SHMQ_TURN_HEADER_FIELDS(F)                                                                 \
    F(0, uint64_t, turn_number, 1, "equals append_positions.turn_number when this one counts")     \
    F(8, uint64_t, log_begin, 1, "physical_offset before this turn")                               \
    F(16, uint64_t, log_end, 1, "physical_offset after it")                                        \
    F(24, uint64_t, store_timestamp, 1, "of every frame in it, ms since 1970")                     \
    F(32, uint32_t, ring_count, 1, "entries in rings")                                             \
    F(36, uint32_t, service_count, 1, "entries in services")                                       \
    F(40, uint64_t, reserved, 11, "zero")

#define SHMQ_TURN_RING_FIELDS(F)                                                                   \
    F(0, uint32_t, ring_slot, 1, "index of the ring slot")                                         \
    F(4, uint32_t, session_generation, 1, "generation of its session")                             \
    F(8, uint64_t, read_position, 1, "read_position after this turn")                              \
    F(16, uint64_t, completion_tail, 1, "completion_tail after this turn")                         \
    F(24, uint64_t, reserved, 1, "zero")

#define SHMQ_TURN_SERVICE_FIELDS(F)                                                                \
    F(0, uint32_t, service_id, 1, "index of the service slot")                                     \
    F(4, uint32_t, reserved, 1, "zero")                                                            \
    F(8, uint64_t, progress, 1, "the service's own progress after this turn")

#define SHMQ_SERVICE_SLOT_FIELDS(F)                                                                \
    F(0, shmq_word64, progress, 1, "written by the append role from the committed turn")           \
    F(8, uint64_t, reserved, 1, "zero")

/* Written by the append role. */
#define SHMQ_HOT_SLOT_FIELDS(F)                                                                    \
    F(0, shmq_word64, file_position, 1, "physical_offset of the first byte held")                  \
    F(8, shmq_word64, generation, 1, "counts reuses of this slot; odd while it changes")           \
    F(16, shmq_word64, object_number, 1, "number in the name of the POSIX object")                 \
    F(24, shmq_word32, state, 1, "enum shmq_hot_state")                                            \
    F(28, uint32_t, reserved, 1, "zero")                                                           \
    F(32, uint64_t, reserved_words, 4, "zero")

enum shmq_hot_state {
    SHMQ_HOT_FREE = 0,     /* no data; the object may be absent */
    SHMQ_HOT_READY = 1,    /* memory and file are prepared for file_position, nothing appended yet */
    SHMQ_HOT_LIVE = 2,     /* holds frames */
    SHMQ_HOT_RETIRED = 3,  /* the file is complete and synced; clients are asked to leave the memory */
};

/* Written by the append role. */
#define SHMQ_SESSION_SLOT_FIELDS(F)                                                                \
    F(0, shmq_word32, state, 1, "enum shmq_session_state")                                         \
    F(4, uint32_t, generation, 1, "counts sessions that used this slot")                           \
    F(8, uint32_t, uid, 1, "uid of the client")                                                    \
    F(12, uint32_t, pid, 1, "pid of the client; says nothing without the next word")               \
    F(16, uint64_t, pid_start_time, 1, "start of that process, clock ticks since boot")            \
    F(24, uint32_t, lane_count, 1, "lanes in the ingress object")                                  \
    F(28, uint32_t, lane_capacity_bytes, 1, "bytes of one lane's ring, a power of two")            \
    F(32, uint32_t, completion_capacity, 1, "completion entries of one lane, a power of two")      \
    F(36, uint32_t, claim_capacity, 1, "claims in the consumer page")                              \
    F(40, uint64_t, ingress_inode, 1, "st_ino of the ingress memfd, 0 if none")                    \
    F(48, uint64_t, ingress_size_bytes, 1, "its exact size")                                       \
    F(56, uint64_t, consumer_inode, 1, "st_ino of the consumer page, 0 if none")                   \
    F(64, uint64_t, consumer_size_bytes, 1, "its exact size")                                      \
    F(72, uint64_t, chunk_inode, 1, "st_ino of the chunk memory for large bodies, 0 if none")      \
    F(80, uint64_t, chunk_size_bytes, 1, "its exact size")                                         \
    F(88, uint64_t, completion_number, 1, "number in the completion object's name")                \
    F(96, uint32_t, service_id, 1, "service + 1 of an internal session, 0 for a client")           \
    F(100, uint32_t, padding, 1, "zero")                                                           \
    F(104, uint32_t, property_grants, 1, "SHMQ_GRANT_* bits of message.h")                         \
    F(108, uint32_t, reserved, 5, "zero")

enum shmq_session_state {
    SHMQ_SESSION_FREE = 0,
    SHMQ_SESSION_LIVE = 1, /* also after its broker's death, until it is resumed or given up */
};

/* Written by the append role; the producer that owns the lane polls this one line. */
#define SHMQ_RING_SLOT_FIELDS(F)                                                                   \
    F(0, shmq_word64, read_position, 1, "ring bytes below it may be overwritten by the producer")  \
    F(8, shmq_word64, completion_tail, 1, "completions below it are committed (appended)")         \
    F(16, shmq_word64, done_tail, 1, "completions below it reached the level they asked for")      \
    F(24, shmq_word32, ended, 1, "0, or the positive status why the session ended")                \
    F(28, shmq_word32, session_generation, 1, "of the session whose lane this is")                 \
    F(32, uint64_t, reserved_words, 12, "zero")

/* Written by the append role. The row's handle (row, generation) is what a record carries. */
#define SHMQ_QUEUE_ROW_FIELDS(F)                                                                   \
    F(0, shmq_word32, state, 1, "enum shmq_row_state")                                             \
    F(4, shmq_word32, generation, 1, "counts queues that used this row")                           \
    F(8, uint32_t, topic_row, 1, "row of its topic")                                               \
    F(12, uint32_t, queue_id, 1, "queueId")                                                        \
    F(16, shmq_word32, flags, 1, "SHMQ_ROW_* bits")                                                \
    F(20, shmq_word32, head_block, 1, "first arena block of the chain, 0 if none")                 \
    F(24, shmq_word32, tail_block, 1, "last arena block of the chain, 0 if none")                  \
    F(28, uint32_t, reserved, 1, "zero")                                                           \
    F(32, shmq_word64, min_queue_offset, 1, "first queue_offset kept, in memory or in files")      \
    F(40, shmq_word64, hot_min_queue_offset, 1, "first queue_offset in the chain")                 \
    F(48, shmq_word64, max_queue_offset, 1, "queue_offset of the next message")                    \
    F(56, shmq_word64, visible_max, 1, "consumers read below it and no further")                   \
    F(64, shmq_word64, messages_in, 1, "messages appended since the row was made")                 \
    F(72, shmq_word64, bytes_in, 1, "bytes of their frames")                                       \
    F(80, shmq_word64, last_position, 1, "physical_offset of the newest message")                  \
    F(88, uint64_t, reserved_words, 5, "zero")

enum shmq_row_state {
    SHMQ_ROW_FREE = 0,
    SHMQ_ROW_ACTIVE = 1,
    SHMQ_ROW_READ_ONLY = 2, /* consumers drain it, sends are refused (NOT_WRITABLE) */
    SHMQ_ROW_DELETED = 3,
};

#define SHMQ_ROW_FLUSH 0x1u    /* visible and done only once flushed (SYNC_FLUSH) */
#define SHMQ_ROW_REPLICA 0x2u  /* visible and done only once confirmed (SYNC_MASTER) */
#define SHMQ_ROW_SCHEDULE 0x4u /* SCHEDULE_TOPIC_XXXX: tagsCode is the deliver time */

#define SHMQ_TOPIC_ROW_FIELDS(F)                                                                   \
    F(0, shmq_word32, state, 1, "enum shmq_row_state")                                             \
    F(4, shmq_word32, generation, 1, "counts topics that used this row")                           \
    F(8, uint32_t, topic_size, 1, "bytes of the name")                                             \
    F(12, uint32_t, reserved, 1, "zero")                                                           \
    F(16, uint64_t, reserved_words, 14, "zero")                                                    \
    F(128, uint8_t, topic, 256, "the name, UTF-8, zero-padded")

/* ---- completion object: one per session, written by the append role, mapped read-only by the client */
#define SHMQ_BELL_FIELDS(F)                                                                        \
    F(0, shmq_word32, bell, 1, "futex word; counts rings of this bell")                            \
    F(4, uint32_t, reserved, 31, "zero")

#define SHMQ_COMPLETION_FIELDS(F)                                                                  \
    F(0, uint64_t, sequence, 1, "which record of the lane, counted from 0")                        \
    F(8, uint64_t, physical_offset, 1, "start of its frame")                                       \
    F(16, uint64_t, queue_offset, 1, "its queue_offset")                                           \
    F(24, uint32_t, size, 1, "bytes of its frame, 0 if refused")                                   \
    F(28, uint8_t, status, 1, "positive enum shmq_status of the append")                           \
    F(29, uint8_t, need, 1, "SHMQ_NEED_* levels the completion waits for")                         \
    F(30, uint8_t, final_status, 1, "positive enum shmq_status once done_tail has passed it")      \
    F(31, uint8_t, reserved, 1, "zero")

#define SHMQ_NEED_FLUSH 0x1u
#define SHMQ_NEED_REPLICA 0x2u

/* ---- ingress object: client-written, hostile ----------------------------------------------------- */
#define SHMQ_LANE_FIELDS(F)                                                                        \
    F(0, shmq_word64, tail, 1, "ring bytes below it are published")                                \
    F(8, shmq_word64, completion_read, 1, "completions below it were taken; their entries are free") \
    F(16, shmq_word32, sleep_epoch, 1, "odd while a thread sleeps on the lane's bell")             \
    F(20, shmq_word32, sleep_reason, 1, "SHMQ_SLEEP_* the sleeper waits for")                      \
    F(24, shmq_word64, full_count, 1, "sends that found no room in the ring")                      \
    F(32, uint64_t, reserved_words, 12, "zero")

#define SHMQ_SLEEP_DONE 0x1u  /* a completion reached its level */
#define SHMQ_SLEEP_SPACE 0x2u /* ring space became free */

#define SHMQ_RECORD_FIELDS(F)                                                                      \
    F(0, uint32_t, size, 1, "bytes of the whole record, a multiple of 8")                          \
    F(4, uint16_t, kind, 1, "SHMQ_RECORD_*")                                                       \
    F(6, uint16_t, flags, 1, "SHMQ_RECORD_WAIT")                                                   \
    F(8, uint32_t, queue_row, 1, "handle: row")                                                    \
    F(12, uint32_t, row_generation, 1, "handle: generation of the row")                            \
    F(16, int32_t, flag, 1, "the user's flag")                                                     \
    F(20, int32_t, sys_flag, 1, "sysFlag bits; only those the session may set count")              \
    F(24, int64_t, born_timestamp, 1, "ms since 1970 on the producer's clock")                     \
    F(32, uint32_t, body_size, 1, "bytes of the body")                                             \
    F(36, uint32_t, properties_size, 1, "bytes of the properties behind the body")                 \
    F(40, int32_t, reconsume_times, 1, "only from a session with the service grant")               \
    F(44, uint16_t, delay_level, 1, "of a delayed message, as its DELAY property says; 0: at once") \
    F(46, uint16_t, service_index, 1, "service: which of its progress words, counted from its first") \
    F(48, uint64_t, chunk_place, 1, "LARGE: where the body lies in the chunk memory")              \
    F(56, uint64_t, progress, 1, "service: its progress once this record is appended")

#define SHMQ_RECORD_MESSAGE 1u /* header, body, properties */
#define SHMQ_RECORD_PAD 2u     /* skips to the ring's start; no completion */
#define SHMQ_RECORD_LARGE 3u   /* header, properties; the body lies in the chunk memory */
#define SHMQ_RECORD_WAIT 0x1u  /* the completion waits for the topic's level (RocketMQ's WAIT) */

/* ---- consumer page: client-written, hostile ------------------------------------------------------- */
#define SHMQ_SLEEPER_FIELDS(F)                                                                     \
    F(0, shmq_word32, sleep_epoch, 1, "odd while a thread sleeps on this consumer's bell")         \
    F(4, uint32_t, reserved, 31, "zero")

#define SHMQ_CLAIM_FIELDS(F)                                                                       \
    F(0, shmq_word64, claim, 1, "claim number the broker gave, 0 for none; stored last")           \
    F(8, shmq_word64, consumer_offset, 1, "next queue_offset to consume under that claim")         \
    F(16, uint32_t, queue_row, 1, "handle: row")                                                   \
    F(20, uint32_t, row_generation, 1, "handle: generation of the row")                            \
    F(24, uint64_t, reserved, 1, "zero")

/* ---- ConsumeQueue arena --------------------------------------------------------------------------- */
#define SHMQ_BLOCK_HEADER_FIELDS(F)                                                                \
    F(0, shmq_word64, generation, 1, "counts uses of this block; odd while it changes hands")      \
    F(8, shmq_word64, first_queue_offset, 1, "queue_offset of entry 0")                            \
    F(16, shmq_word32, queue_row, 1, "owner row")                                                  \
    F(20, shmq_word32, row_generation, 1, "owner generation")                                      \
    F(24, shmq_word32, previous_block, 1, "block before it in the chain, 0 at the head")           \
    F(28, shmq_word32, next_block, 1, "block behind it, 0 at the tail")                            \
    F(32, shmq_word32, skip_block, 1, "an earlier block: the last whose ordinal divides by 64")    \
    F(36, shmq_word32, ordinal, 1, "place in the chain, counted from 0 and never reused")          \
    F(40, uint64_t, reserved, 11, "zero")

#define SHMQ_ENTRY_FIELDS(F)                                                                       \
    F(0, shmq_word64, physical_offset, 1, "start of the frame in the CommitLog")                   \
    F(8, shmq_word64, tags_code, 1, "int64: hash of the tag, 0 without; deliver time if scheduled") \
    F(16, shmq_word64, size, 1, "bytes of the frame")

#define SHMQ_BLOCK_SIZE 4096u
#define SHMQ_BLOCK_ENTRIES 165u /* (4096 - 128) / 24 */
#define SHMQ_SKIP_DISTANCE 64u

/* ---- stats object: what only exporters read (stats.h) ---------------------------------------------- */
/* Written by the broker's control thread. */
#define SHMQ_STATS_HEAD_FIELDS(F)                                                                  \
    F(0, shmq_word64, looked_ns, 1, "when it was brought up to date last, ns of CLOCK_MONOTONIC")  \
    F(8, shmq_word64, ring_full_count, 1, "full_count of all lanes since the broker began")        \
    F(16, shmq_word64, ring_used_bytes_max, 1, "fullest ring at the last look: bytes in it")       \
    F(24, shmq_word64, ring_capacity_bytes, 1, "bytes that ring takes")                            \
    F(32, shmq_word32, row_count, 1, "stats rows below it are or were in use")                     \
    F(36, uint32_t, reserved, 1, "zero")                                                           \
    F(40, uint64_t, reserved_words, 11, "zero")

/* Written by the append role. */
#define SHMQ_REFUSALS_FIELDS(F)                                                                    \
    F(0, shmq_word64, by_status, 64, "records answered with an error, by positive enum shmq_status")

/* Written by the one who measures: the flusher, a producer in its ingress object, the control thread. */
#define SHMQ_LATENCY_FIELDS(F)                                                                     \
    F(0, shmq_word64, counts, 20, "how many took up to the bound of that number, the last: longer") \
    F(160, shmq_word64, sum_ns, 1, "nanoseconds of all of them")                                   \
    F(168, uint64_t, reserved, 11, "zero")

/* Written by the broker's control thread. */
#define SHMQ_STATS_ROW_FIELDS(F)                                                                   \
    F(0, shmq_word32, generation, 1, "counts uses of this row; odd while it changes hands")        \
    F(4, shmq_word32, kind, 1, "enum shmq_stats_kind")                                             \
    F(8, shmq_word32, queue_row, 1, "CONSUMER_OFFSET: handle: row")                                \
    F(12, shmq_word32, row_generation, 1, "CONSUMER_OFFSET: handle: generation of the row")        \
    F(16, shmq_word64, value, 1, "CONSUMER_OFFSET: next queue_offset to consume; VALUE: it")       \
    F(24, shmq_word64, passed_count, 1, "CONSUMER_OFFSET: queue_offsets the group has passed")     \
    F(32, shmq_word64, waiting_since, 1, "CONSUMER_OFFSET: store time of the message at value, 0: none") \
    F(40, uint32_t, label_size, 1, "bytes of the label")                                           \
    F(44, uint32_t, reserved, 1, "zero")                                                           \
    F(48, uint64_t, reserved_words, 10, "zero")                                                    \
    F(128, uint8_t, label, 256, "CONSUMER_OFFSET: group; VALUE: metric, line feed, label; zero-padded")

enum shmq_stats_kind {
    SHMQ_STATS_FREE = 0,
    SHMQ_STATS_CONSUMER_OFFSET = 1,
    SHMQ_STATS_VALUE = 2,
};

/* ---- the structs, their asserts, and the table for Python ------------------------------------------ */
#define SHMQ_LAYOUT_TABLE(L)                                                                       \
    L(segment_header, SHMQ_SEGMENT_HEADER_FIELDS, 128)                                             \
    L(control_config, SHMQ_CONTROL_CONFIG_FIELDS, 128)                                             \
    L(append_positions, SHMQ_APPEND_POSITIONS_FIELDS, 128)                                         \
    L(flush_positions, SHMQ_FLUSH_POSITIONS_FIELDS, 128)                                           \
    L(replica_positions, SHMQ_REPLICA_POSITIONS_FIELDS, 128)                                       \
    L(sleep_line, SHMQ_SLEEP_LINE_FIELDS, 128)                                                     \
    L(counters, SHMQ_COUNTERS_FIELDS, 128)                                                         \
    L(turn_header, SHMQ_TURN_HEADER_FIELDS, 128)                                                   \
    L(turn_ring, SHMQ_TURN_RING_FIELDS, 32)                                                        \
    L(turn_service, SHMQ_TURN_SERVICE_FIELDS, 16)                                                  \
    L(service_slot, SHMQ_SERVICE_SLOT_FIELDS, 16)                                                  \
    L(hot_slot, SHMQ_HOT_SLOT_FIELDS, 64)                                                          \
    L(session_slot, SHMQ_SESSION_SLOT_FIELDS, 128)                                                 \
    L(ring_slot, SHMQ_RING_SLOT_FIELDS, 128)                                                       \
    L(queue_row, SHMQ_QUEUE_ROW_FIELDS, 128)                                                       \
    L(topic_row, SHMQ_TOPIC_ROW_FIELDS, 384)                                                       \
    L(bell_line, SHMQ_BELL_FIELDS, 128)                                                            \
    L(completion, SHMQ_COMPLETION_FIELDS, 32)                                                      \
    L(lane, SHMQ_LANE_FIELDS, 128)                                                                 \
    L(record, SHMQ_RECORD_FIELDS, 64)                                                              \
    L(sleeper, SHMQ_SLEEPER_FIELDS, 128)                                                           \
    L(claim, SHMQ_CLAIM_FIELDS, 32)                                                                \
    L(block_header, SHMQ_BLOCK_HEADER_FIELDS, 128)                                                 \
    L(entry, SHMQ_ENTRY_FIELDS, 24)                                                                \
    L(stats_head, SHMQ_STATS_HEAD_FIELDS, 128)                                                     \
    L(refusals, SHMQ_REFUSALS_FIELDS, 512)                                                         \
    L(latency, SHMQ_LATENCY_FIELDS, 256)                                                           \
    L(stats_row, SHMQ_STATS_ROW_FIELDS, 384)

#define SHMQ_DEFINE_STRUCT(name, fields, size_wanted)                                              \
    struct shmq_##name {                                                                           \
        fields(SHMQ_STRUCT_FIELD)                                                                  \
    };                                                                                             \
    _Static_assert(sizeof(struct shmq_##name) == (size_wanted), #name " is not " #size_wanted);
SHMQ_LAYOUT_TABLE(SHMQ_DEFINE_STRUCT)
#undef SHMQ_DEFINE_STRUCT

#define SHMQ_OF shmq_segment_header
SHMQ_SEGMENT_HEADER_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_control_config
SHMQ_CONTROL_CONFIG_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_append_positions
SHMQ_APPEND_POSITIONS_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_flush_positions
SHMQ_FLUSH_POSITIONS_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_replica_positions
SHMQ_REPLICA_POSITIONS_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_counters
SHMQ_COUNTERS_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_turn_header
SHMQ_TURN_HEADER_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_turn_ring
SHMQ_TURN_RING_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_turn_service
SHMQ_TURN_SERVICE_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_hot_slot
SHMQ_HOT_SLOT_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_session_slot
SHMQ_SESSION_SLOT_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_ring_slot
SHMQ_RING_SLOT_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_queue_row
SHMQ_QUEUE_ROW_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_topic_row
SHMQ_TOPIC_ROW_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_completion
SHMQ_COMPLETION_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_lane
SHMQ_LANE_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_record
SHMQ_RECORD_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_claim
SHMQ_CLAIM_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_block_header
SHMQ_BLOCK_HEADER_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_entry
SHMQ_ENTRY_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_stats_head
SHMQ_STATS_HEAD_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_latency
SHMQ_LATENCY_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF
#define SHMQ_OF shmq_stats_row
SHMQ_STATS_ROW_FIELDS(SHMQ_ASSERT_FIELD)
#undef SHMQ_OF

struct shmq_turn_record {
    struct shmq_turn_header header;
    struct shmq_turn_ring rings[SHMQ_TURN_RING_MAX];
    struct shmq_turn_service services[SHMQ_SERVICE_MAX];
};
_Static_assert(sizeof(struct shmq_turn_record) % SHMQ_LINE == 0, "turn records keep their lines apart");

struct shmq_block {
    struct shmq_block_header header;
    struct shmq_entry entries[SHMQ_BLOCK_ENTRIES];
    uint64_t reserved;
};
_Static_assert(sizeof(struct shmq_block) == SHMQ_BLOCK_SIZE, "a block fills its page");

/* Fixed places in the control segment, one line each; the rest is placed by control_config. */
struct shmq_control {
    struct shmq_segment_header header;
    struct shmq_control_config config;
    struct shmq_append_positions append;
    struct shmq_flush_positions flush;
    struct shmq_replica_positions replica;
    struct shmq_sleep_line sleep;
    struct shmq_counters counters;
};
_Static_assert(sizeof(struct shmq_control) == 7 * SHMQ_LINE, "the control head is seven lines");

/* What a stats object begins with; its rows follow at STATS_ROWS_PLACE. */
struct shmq_stats {
    struct shmq_segment_header header;
    struct shmq_stats_head head;
    struct shmq_refusals refusals;
    struct shmq_latency flush; /* of fdatasync */
    struct shmq_latency send;  /* of all producers */
};

/* Places inside the other objects. */
#define SHMQ_LANES_PLACE SHMQ_LINE                                   /* ingress: lanes */
#define SHMQ_LANE_LATENCY_PLACE 1024u                                /* ingress: what sends took, by lane */
#define SHMQ_RING_DATA_PLACE SHMQ_PAGE                               /* ingress: ring data of lane 0 */
#define SHMQ_BELLS_PLACE SHMQ_LINE                                   /* completion object: bells */
#define SHMQ_COMPLETIONS_PLACE SHMQ_PAGE                             /* completion object: entries */
#define SHMQ_SLEEPERS_PLACE SHMQ_LINE                                /* consumer page: sleepers */
#define SHMQ_CLAIMS_PLACE SHMQ_PAGE                                  /* consumer page: claims */
#define SHMQ_CHUNK_DATA_PLACE SHMQ_PAGE                              /* chunk memory: bodies */
#define SHMQ_TOPIC_ROWS_PLACE SHMQ_PAGE                              /* topics segment: rows */
#define SHMQ_STATS_ROWS_PLACE SHMQ_PAGE                              /* stats object: rows */
_Static_assert(SHMQ_LANES_PLACE + SHMQ_LANE_MAX * sizeof(struct shmq_lane) <= SHMQ_LANE_LATENCY_PLACE,
               "lanes fit");
_Static_assert(SHMQ_LANE_LATENCY_PLACE + SHMQ_LANE_MAX * sizeof(struct shmq_latency) <= SHMQ_RING_DATA_PLACE,
               "latencies of lanes fit");
_Static_assert(sizeof(struct shmq_stats) <= SHMQ_STATS_ROWS_PLACE, "the head of a stats object fits");
_Static_assert(SHMQ_BELLS_PLACE + SHMQ_BELL_MAX * sizeof(struct shmq_bell_line) <= SHMQ_PAGE, "bells fit");
_Static_assert(SHMQ_SLEEPERS_PLACE + SHMQ_CONSUMER_BELL_MAX * sizeof(struct shmq_sleeper) <= SHMQ_PAGE,
               "sleepers fit");

static inline struct shmq_turn_record *shmq_control_turn_record(struct shmq_control *control, uint64_t turn)
{
    return (struct shmq_turn_record *)((uint8_t *)control + control->config.turn_records_place) + (turn & 1);
}

static inline struct shmq_hot_slot *shmq_control_hot_slot(struct shmq_control *control, uint32_t index)
{
    return (struct shmq_hot_slot *)((uint8_t *)control + control->config.hot_slots_place) + index;
}

static inline struct shmq_service_slot *shmq_control_service_slot(struct shmq_control *control, uint32_t index)
{
    return (struct shmq_service_slot *)((uint8_t *)control + control->config.service_slots_place) + index;
}

static inline struct shmq_session_slot *shmq_control_session_slot(struct shmq_control *control, uint32_t index)
{
    return (struct shmq_session_slot *)((uint8_t *)control + control->config.session_slots_place) + index;
}

static inline struct shmq_ring_slot *shmq_control_ring_slot(struct shmq_control *control, uint32_t index)
{
    return (struct shmq_ring_slot *)((uint8_t *)control + control->config.ring_slots_place) + index;
}

static inline struct shmq_queue_row *shmq_control_queue_row(struct shmq_control *control, uint32_t index)
{
    return (struct shmq_queue_row *)((uint8_t *)control + control->config.queue_rows_place) + index;
}

static inline uint64_t shmq_layout_align(uint64_t value, uint64_t alignment)
{
    return (value + alignment - 1) / alignment * alignment;
}

/* Places of the parts behind the head, and the byte size of a control segment with no queue rows. */
static inline uint64_t shmq_control_place(struct shmq_control_config *config)
{
    uint64_t place = sizeof(struct shmq_control);
    config->turn_records_place = place;
    place += 2 * sizeof(struct shmq_turn_record);
    config->hot_slots_place = place;
    place = shmq_layout_align(place + SHMQ_HOT_SLOT_MAX * sizeof(struct shmq_hot_slot), SHMQ_LINE);
    config->service_slots_place = place;
    place = shmq_layout_align(place + SHMQ_SERVICE_MAX * sizeof(struct shmq_service_slot), SHMQ_LINE);
    config->session_slots_place = place;
    place += config->session_slot_count * sizeof(struct shmq_session_slot);
    config->ring_slots_place = place;
    place += (uint64_t)config->session_slot_count * SHMQ_LANE_MAX * sizeof(struct shmq_ring_slot);
    config->queue_rows_place = shmq_layout_align(place, SHMQ_PAGE);
    return config->queue_rows_place;
}

static inline uint64_t shmq_ingress_size(uint32_t lane_count, uint32_t lane_capacity_bytes)
{
    return SHMQ_RING_DATA_PLACE + (uint64_t)lane_count * lane_capacity_bytes;
}

static inline uint64_t shmq_completion_size(uint32_t lane_count, uint32_t completion_capacity)
{
    return shmq_layout_align(SHMQ_COMPLETIONS_PLACE + (uint64_t)lane_count * completion_capacity *
                                                          sizeof(struct shmq_completion), SHMQ_PAGE);
}

static inline uint64_t shmq_consumer_size(uint32_t claim_capacity)
{
    return shmq_layout_align(SHMQ_CLAIMS_PLACE + (uint64_t)claim_capacity * sizeof(struct shmq_claim),
                             SHMQ_PAGE);
}

#endif
