/* consume_queue.h: ConsumeQueue entries in 4 KiB blocks of one arena, a chain of blocks per queue.
 *
 * Byte table: layout.h block_header, entry, queue_row. Block 0 of the arena is the segment head, so 0 is "none".
 * Validity: the entry of queue_offset q is entry q - first_queue_offset of the chain's block that holds it, for
 * hot_min_queue_offset <= q < visible_max of the row; below, it is in the file beside its CommitLog file.
 * Writer algorithm (append role): a block changes hands under an odd generation (fill, then even,
 * release); link it behind the tail; write entries; release max_queue_offset, then visible_max.
 * Reader algorithm: visible_max (acquire); walk from a remembered block or back from the tail; copy
 * entries; acquire fence; the block's generation must be as before, else look again.
 * Crash: entries of an uncommitted turn do not exist (they are written after the commit). A block that
 * was taken and not linked is found free again by shmq_arena_rebuild; a put is repeated by the redo of
 * the last turn and writes the same bytes. The successor of the dead broker repairs. */
#ifndef SHMQ_CONSUME_QUEUE_H
#define SHMQ_CONSUME_QUEUE_H

#include "layout.h"
#include "status.h"

/* A chain longer than this is broken. */
#define SHMQ_WALK_MAX (1u << 22)
#define SHMQ_READ_RETRIES 1000u
#define SHMQ_NO_ROW 0xffffffffu

/* Process-private view of the arena for the append role: free blocks are a stack of block numbers. */
struct shmq_arena {
    uint8_t *base;
    uint32_t *free_blocks; /* room for arena_block_max numbers */
    uint32_t free_count;
    uint32_t block_count; /* allocated in memory, block 0 included */
};

static inline struct shmq_block *shmq_arena_block(uint8_t *base, uint32_t block)
{
    return (struct shmq_block *)(void *)(base + (uint64_t)block * SHMQ_BLOCK_SIZE);
}

/* The queue's place for its next entry; process-private to the append role. */
struct shmq_chain {
    uint32_t tail_block;
    uint32_t tail_room; /* entries that still fit behind the tail's last one */
    uint32_t ordinal;   /* of the next block */
};

/* Puts one entry. The caller has made sure of a free block if chain->tail_room is 0. */
static inline void shmq_consume_queue_put(struct shmq_arena *arena, struct shmq_queue_row *row,
                                          uint32_t row_index, struct shmq_chain *chain,
                                          uint64_t queue_offset, uint64_t physical_offset, uint32_t size,
                                          int64_t tags_code)
{
    struct shmq_block *block;
    if (chain->tail_room == 0) {
        uint32_t number = arena->free_blocks[--arena->free_count];
        block = shmq_arena_block(arena->base, number);
        struct shmq_block_header *head = &block->header;
        uint64_t generation = shmq_load_relaxed(&head->generation) | 1u;
        /* relaxed + fence: pairs with the acquire fence in shmq_consume_queue_read: who saw new bytes sees odd */
        shmq_store_relaxed(&head->generation, generation);
        shmq_fence_release(); /* pairs with that same acquire fence */
        uint32_t previous = chain->tail_block;
        uint32_t skip = 0;
        if (previous != 0) {
            const struct shmq_block_header *before = &shmq_arena_block(arena->base, previous)->header;
            skip = shmq_load_relaxed32(&before->ordinal) % SHMQ_SKIP_DISTANCE == 0
                       ? previous
                       : shmq_load_relaxed32(&before->skip_block);
        }
        /* relaxed: all of these become visible by the release of the even generation below */
        shmq_store_relaxed(&head->first_queue_offset, queue_offset);
        shmq_store_relaxed32(&head->queue_row, row_index);
        shmq_store_relaxed32(&head->row_generation, shmq_load_relaxed32(&row->generation));
        shmq_store_relaxed32(&head->previous_block, previous);
        shmq_store_relaxed32(&head->next_block, 0);
        shmq_store_relaxed32(&head->skip_block, skip);
        shmq_store_relaxed32(&head->ordinal, chain->ordinal++);
        /* release: pairs with the acquire in shmq_consume_queue_read; the head is whole */
        shmq_store_release(&head->generation, generation + 1);
        if (previous != 0) {
            /* release: pairs with the acquire of next_block in shmq_consume_queue_read */
            shmq_store_release32(&shmq_arena_block(arena->base, previous)->header.next_block, number);
        } else {
            /* relaxed: readers come from the tail */
            shmq_store_relaxed32(&row->head_block, number);
            shmq_store_relaxed(&row->hot_min_queue_offset, queue_offset);
        }
        /* release: pairs with the acquire of tail_block in shmq_consume_queue_read */
        shmq_store_release32(&row->tail_block, number);
        chain->tail_block = number;
        chain->tail_room = SHMQ_BLOCK_ENTRIES;
    } else {
        block = shmq_arena_block(arena->base, chain->tail_block);
    }
    struct shmq_entry *entry = &block->entries[SHMQ_BLOCK_ENTRIES - chain->tail_room];
    /* relaxed: published by the release of visible_max in shmq_turn_publish */
    shmq_store_relaxed(&entry->physical_offset, physical_offset);
    shmq_store_relaxed(&entry->tags_code, (uint64_t)tags_code);
    shmq_store_relaxed(&entry->size, size);
    chain->tail_room -= 1;
}

/* An entry as a reader gets it. */
struct shmq_found {
    uint64_t physical_offset;
    int64_t tags_code;
    uint32_t size;
    uint32_t reserved;
};

/* Where a reader stands; process-private. Zero it to begin. */
struct shmq_cursor {
    uint64_t block_generation;
    uint32_t block; /* 0: unknown */
    uint32_t reserved;
};

/* Finds the block of queue_offset for (row_index, row_generation): its number, or 0 if it is not in the chain
 * (trimmed meanwhile). *generation is the block's, to be compared after copying. */
static inline uint32_t shmq_consume_queue_find(const uint8_t *base, uint32_t block_count,
                                               const struct shmq_queue_row *row, uint32_t row_index,
                                               uint32_t row_generation, uint64_t queue_offset,
                                               struct shmq_cursor *cursor)
{
    uint32_t number = cursor->block;
    uint32_t from_cursor = number != 0;
    if (!from_cursor) {
        /* acquire: pairs with the release of tail_block in shmq_consume_queue_put */
        number = shmq_load_acquire32(&row->tail_block);
    }
    /* Once along the chain from the remembered block, once from the tail: no honest walk is longer. */
    for (uint64_t step = 0; step < 2 * (uint64_t)block_count + 2; ++step) {
        if (number == 0 || number >= block_count) {
            if (!from_cursor) {
                return 0;
            }
            from_cursor = 0; /* the remembered block led nowhere: begin again at the tail */
            /* acquire: as above */
            number = shmq_load_acquire32(&row->tail_block);
            continue;
        }
        const struct shmq_block_header *head =
            &shmq_arena_block((uint8_t *)(uintptr_t)base, number)->header;
        /* acquire: pairs with the release of the even generation in shmq_consume_queue_put */
        uint64_t generation = shmq_load_acquire(&head->generation);
        uint64_t first = shmq_load_relaxed(&head->first_queue_offset);
        uint32_t owner = shmq_load_relaxed32(&head->queue_row);
        uint32_t owner_generation = shmq_load_relaxed32(&head->row_generation);
        uint32_t previous = shmq_load_relaxed32(&head->previous_block);
        uint32_t skip = shmq_load_relaxed32(&head->skip_block);
        /* acquire: pairs with the release of next_block in shmq_consume_queue_put */
        uint32_t next = shmq_load_acquire32(&head->next_block);
        shmq_fence_acquire(); /* pairs with the release fence in shmq_consume_queue_put */
        if ((generation & 1) != 0 || shmq_load_relaxed(&head->generation) != generation ||
            owner != row_index || owner_generation != row_generation) {
            if (!from_cursor) {
                return 0;
            }
            from_cursor = 0;
            /* acquire: as above */
            number = shmq_load_acquire32(&row->tail_block);
            continue;
        }
        if (queue_offset >= first && queue_offset - first < SHMQ_BLOCK_ENTRIES) {
            cursor->block = number;
            cursor->block_generation = generation;
            return number;
        }
        if (queue_offset >= first) {
            number = next; /* forward, from a remembered block */
            continue;
        }
        /* Backward: take the skip if it does not lead past the place. */
        uint32_t candidate = previous;
        if (skip != 0 && skip < block_count && skip != previous) {
            const struct shmq_block_header *far =
                &shmq_arena_block((uint8_t *)(uintptr_t)base, skip)->header;
            /* acquire: pairs with the release of the even generation in shmq_consume_queue_put */
            uint64_t far_generation = shmq_load_acquire(&far->generation);
            uint64_t far_first = shmq_load_relaxed(&far->first_queue_offset);
            uint32_t far_owner = shmq_load_relaxed32(&far->queue_row);
            uint32_t far_owner_generation = shmq_load_relaxed32(&far->row_generation);
            shmq_fence_acquire(); /* pairs with the release fence in shmq_consume_queue_put */
            if ((far_generation & 1) == 0 && shmq_load_relaxed(&far->generation) == far_generation &&
                far_owner == row_index && far_owner_generation == row_generation && far_first < first &&
                queue_offset < far_first + SHMQ_BLOCK_ENTRIES) {
                candidate = skip;
            }
        }
        number = candidate;
    }
    return 0;
}

/* Copies up to `count` entries from queue_offset on into found[]. Returns how many (> 0), EMPTY (nothing
 * visible there yet), OFFSET_TOO_SMALL (not in memory: look into the files), FENCED (the queue is another
 * one now). Never waits. */
static inline int shmq_consume_queue_read(const uint8_t *base, uint32_t block_count,
                                          const struct shmq_queue_row *row, uint32_t row_index,
                                          uint32_t row_generation, uint64_t queue_offset, uint32_t count,
                                          struct shmq_cursor *cursor, struct shmq_found *found)
{
    /* acquire: pairs with the release of generation where a row changes hands */
    if (shmq_load_acquire32(&row->generation) != row_generation) {
        return SHMQ_FENCED;
    }
    /* acquire: pairs with the release of visible_max in shmq_turn_publish / shmq_turn_settle */
    uint64_t visible = shmq_load_acquire(&row->visible_max);
    if (queue_offset >= visible) {
        return SHMQ_EMPTY;
    }
    uint64_t available = visible - queue_offset;
    if (count > available) {
        count = (uint32_t)available;
    }
    uint32_t got = 0;
    for (uint32_t attempt = 0; attempt < SHMQ_READ_RETRIES && got < count; ++attempt) {
        if (queue_offset + got < shmq_load_relaxed(&row->hot_min_queue_offset)) {
            break;
        }
        uint32_t number = shmq_consume_queue_find(base, block_count, row, row_index, row_generation,
                                                  queue_offset + got, cursor);
        if (number == 0) {
            cursor->block = 0;
            continue;
        }
        const struct shmq_block *block = shmq_arena_block((uint8_t *)(uintptr_t)base, number);
        uint64_t first = shmq_load_relaxed(&block->header.first_queue_offset);
        uint64_t index = queue_offset + got - first;
        uint32_t here = 0;
        while (index + here < SHMQ_BLOCK_ENTRIES && got + here < count) {
            const struct shmq_entry *entry = &block->entries[index + here];
            /* relaxed: published with visible_max; checked by the generation below */
            found[got + here].physical_offset = shmq_load_relaxed(&entry->physical_offset);
            found[got + here].tags_code = (int64_t)shmq_load_relaxed(&entry->tags_code);
            found[got + here].size = (uint32_t)shmq_load_relaxed(&entry->size);
            found[got + here].reserved = 0;
            ++here;
        }
        shmq_fence_acquire(); /* pairs with the release fence in shmq_consume_queue_put */
        if (shmq_load_relaxed(&block->header.generation) != cursor->block_generation || here == 0) {
            cursor->block = 0;
            continue;
        }
        got += here;
    }
    if (got > 0) {
        return (int)got;
    }
    shmq_fence_acquire(); /* pairs with the release fence in shmq_append_add_row: who met the new queue knows it */
    /* acquire: pairs with the release of generation where a row changes hands: meanwhile, perhaps */
    return shmq_load_acquire32(&row->generation) != row_generation ? SHMQ_FENCED : SHMQ_OFFSET_TOO_SMALL;
}

static inline void shmq_arena_free(struct shmq_arena *arena, uint32_t number)
{
    struct shmq_block_header *head = &shmq_arena_block(arena->base, number)->header;
    /* release: pairs with the acquire in shmq_consume_queue_find; a reader there begins again */
    shmq_store_release(&head->generation, shmq_load_relaxed(&head->generation) | 1u);
    shmq_store_relaxed32(&head->queue_row, SHMQ_NO_ROW); /* relaxed: the block is odd */
    arena->free_blocks[arena->free_count++] = number;
}

/* Frees the blocks at the chain's head whose entries all lie below min_position. Append role. Returns the
 * number freed. A queue whose whole chain is cold keeps no block at all. */
static inline uint32_t shmq_consume_queue_trim(struct shmq_arena *arena, struct shmq_queue_row *row,
                                               struct shmq_chain *chain, uint64_t min_position)
{
    uint32_t freed = 0;
    uint64_t visible = shmq_load_relaxed(&row->visible_max);
    for (uint32_t step = 0; step < SHMQ_WALK_MAX; ++step) {
        uint32_t number = shmq_load_relaxed32(&row->head_block);
        if (number == 0) {
            break;
        }
        struct shmq_block *block = shmq_arena_block(arena->base, number);
        int is_tail = number == chain->tail_block;
        uint32_t used = is_tail ? SHMQ_BLOCK_ENTRIES - chain->tail_room : SHMQ_BLOCK_ENTRIES;
        uint64_t first = shmq_load_relaxed(&block->header.first_queue_offset);
        if (used == 0 || shmq_load_relaxed(&block->entries[used - 1].physical_offset) >= min_position ||
            first + used > visible) {
            break;
        }
        uint32_t next = is_tail ? 0 : shmq_load_relaxed32(&block->header.next_block);
        /* relaxed before the free: a reader that misses it finds the odd generation and looks again */
        shmq_store_relaxed(&row->hot_min_queue_offset, first + used);
        shmq_store_relaxed32(&row->head_block, next);
        if (next == 0) {
            chain->tail_block = 0;
            chain->tail_room = 0;
            shmq_store_relaxed32(&row->tail_block, 0); /* relaxed: readers check hot_min first */
        } else {
            shmq_store_relaxed32(&shmq_arena_block(arena->base, next)->header.previous_block, 0);
        }
        shmq_arena_free(arena, number);
        ++freed;
    }
    return freed;
}

#endif
