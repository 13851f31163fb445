/* consumer_page.h: a consumer's progress, by claim, in a page that the consumer writes and the broker reads.
 *
 * Byte table: layout.h claim (from SHMQ_CLAIMS_PLACE on) and sleeper.
 * Validity: a claim's consumer_offset counts while its claim number is the one that the broker gave for that
 * queue; both are hostile and range-checked by whoever harvests.
 * Writer algorithm (consumer): to take a claim: claim = 0, fill, claim = number (release). To report: store
 * consumer_offset (release). To drop it: claim = 0.
 * Reader algorithm (broker, store/sessions.py load_claim): claim (acquire), consumer_offset (acquire), claim once
 * more: as before, else nothing. What it reads is hostile and range-checked against the queue.
 * Crash: a consumer that dies while it takes a claim leaves 0, which nobody harvests; one that dies later leaves
 * its last report, which counts. Nobody repairs anything. */
#ifndef SHMQ_CONSUMER_PAGE_H
#define SHMQ_CONSUMER_PAGE_H

#include "layout.h"

static inline struct shmq_claim *shmq_consumer_claim(uint8_t *page, uint32_t index)
{
    return (struct shmq_claim *)(void *)(page + SHMQ_CLAIMS_PLACE) + index;
}

static inline struct shmq_sleeper *shmq_consumer_sleeper(uint8_t *page, uint32_t bell)
{
    return (struct shmq_sleeper *)(void *)(page + SHMQ_SLEEPERS_PLACE) + bell;
}

static inline void shmq_claim_drop(struct shmq_claim *claim)
{
    /* relaxed + fence: pairs with the acquire load of consumer_offset in load_claim: who saw a new one sees 0 */
    shmq_store_relaxed(&claim->claim, 0);
    shmq_fence_release(); /* pairs with that same acquire */
}

static inline void shmq_claim_take(struct shmq_claim *claim, uint64_t number, uint32_t queue_row,
                                   uint32_t row_generation, uint64_t consumer_offset)
{
    shmq_claim_drop(claim);
    claim->queue_row = queue_row;
    claim->row_generation = row_generation;
    /* relaxed: visible by the release of the claim number */
    shmq_store_relaxed(&claim->consumer_offset, consumer_offset);
    /* release: pairs with the acquire in load_claim; the claim is whole */
    shmq_store_release(&claim->claim, number);
}

static inline void shmq_claim_report(struct shmq_claim *claim, uint64_t consumer_offset)
{
    /* release: pairs with the acquire in load_claim; what lies below it was consumed before */
    shmq_store_release(&claim->consumer_offset, consumer_offset);
}

#endif

