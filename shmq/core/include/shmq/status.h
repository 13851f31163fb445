/* status.h: what a verb of the core gives back. Ordinary outcomes are values, never surprises.
 *
 * Zero is success; everything else is negative, so that a verb may return a count or a status in one
 * int. The names climb unchanged into Python (shmq.core.STATUS) where errors.py and status.py turn
 * them into RocketMQ's statuses or into exceptions. */
#ifndef SHMQ_STATUS_H
#define SHMQ_STATUS_H

#define SHMQ_STATUS_TABLE(S)                                                                       \
    S(OK, 0, "done")                                                                               \
    S(EMPTY, -1, "nothing there yet")                                                              \
    S(FULL, -2, "no room now, try again later")                                                    \
    S(TIMED_OUT, -3, "the time given ran out; the outcome may be unknown")                         \
    S(CORRUPT, -4, "bytes that no writer of ours could have written")                              \
    S(BLANK, -5, "a BLANK frame: the rest of this file holds nothing")                             \
    S(ILLEGAL, -6, "the message breaks a rule of the store")                                       \
    S(TOO_LARGE, -7, "larger than the store accepts")                                              \
    S(FENCED, -8, "a newer epoch, generation or incarnation owns this")                            \
    S(CLOSED, -9, "the handle or the session has ended")                                           \
    S(LOG_FULL, -10, "the hot log is full: the disk is slower than the producers")                 \
    S(DISK_FULL, -11, "the next CommitLog file cannot be made: the disk is full or refuses")       \
    S(FLUSH_FAILED, -12, "the disk refused a write for good: this store takes no more messages")   \
    S(NO_TOPIC, -13, "the queue's topic does not exist any more")                                  \
    S(NOT_GRANTED, -14, "this session holds no grant for that queue or property")                  \
    S(RESERVED, -15, "a reserved property name")                                                   \
    S(PROPERTIES_TOO_LARGE, -16, "properties over 32767 bytes")                                    \
    S(ARENA_FULL, -17, "the ConsumeQueue arena is out of blocks")                                  \
    S(OVERRUN, -18, "the place read was reused meanwhile")                                         \
    S(FLUSH_DISK_TIMEOUT, -19, "stored, but not on disk within syncFlushTimeout")                  \
    S(FLUSH_SLAVE_TIMEOUT, -20, "stored, but not on a replica within slaveTimeout")                \
    S(SLAVE_NOT_AVAILABLE, -21, "stored, but no replica is in sync")                               \
    S(NOT_WRITABLE, -22, "the queue or the store takes no messages now")                           \
    S(OFFSET_TOO_SMALL, -23, "below the first queue_offset that is kept")                          \
    S(STOPPED, -24, "the loop was asked to stop")                                                  \
    S(IN_SYNC_REPLICAS_NOT_ENOUGH, -25, "not stored: fewer slaves in sync than the broker asks for")   \
    S(SHM_FULL, -26, "the log gets no more memory: /dev/shm, a memory limit or the arena is full")     \
    S(LIMIT, -27, "the broker's process is at a limit, most likely of open files: raise LimitNOFILE=") \
    S(DISK_READ_ONLY, -28, "the next CommitLog file cannot be made: the file system is read-only")

enum shmq_status {
#define SHMQ_STATUS_MEMBER(name, value, meaning) SHMQ_##name = (value),
    SHMQ_STATUS_TABLE(SHMQ_STATUS_MEMBER)
#undef SHMQ_STATUS_MEMBER
};

#endif
