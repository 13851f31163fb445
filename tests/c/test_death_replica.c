/* shmq-test: plain */
/* The slave dies at every instruction of a replica turn; its successor adopts, copies on, and ends equal. */
#define _GNU_SOURCE
#include "death.h"
#include "replica_pair.h"

static struct fixture *master; /* in the region of the scene's store: a child has the very same */

static void one_replica_turn(struct scene *s)
{
    struct shmq_replica_source source = pair_source(master);
    pair_give_file(master, s->f, &source);
    (void)shmq_replica_turn(&s->f->append, &source, 1);
    shmq_replica_follow_confirmed(&s->f->append, &source);
    (void)shmq_turn_settle(&s->f->append, 1);
}

static void adopt_and_copy_on(struct scene *s)
{
    static struct death_seen seen;
    struct shmq_replica_source source = pair_source(master);
    death_look(s, &seen);
    TRUTH(fixture_adopt(s->f) == SHMQ_OK);
    death_compare(s, &seen);
    pair_catch_up(master, s->f, &source);
    scene_flush(s);
    (void)shmq_turn_settle(&s->f->append, 1);
    death_compare(s, &seen);
    pair_compare(master, s->f);
    death_count_blocks(s);
}

static struct scene pair_scene(struct scene *m, const char *name)
{
    struct scene s;
    scene_open(m, name);
    scene_open(&s, name);
    master = m->f;
    s.work = one_replica_turn;
    return s;
}

static void pair_scene_close(struct scene *m, struct scene *s)
{
    scene_close(m);
    scene_close(s);
}

/* Four queues, a block more, a level. */
static void test_death_in_a_replica_turn_ends_equal(void)
{
    struct scene m;
    struct scene s = pair_scene(&m, "a replica turn");
    struct shmq_replica_source source = pair_source(master);
    for (uint32_t i = 1; i < SHMQ_BLOCK_ENTRIES; ++i) {
        scene_fill(&m, 0, 1);
        pair_catch_up(master, s.f, &source);
    }
    scene_flush(&s);
    (void)shmq_turn_settle(&s.f->append, 1);
    for (uint32_t i = 0; i < 8; ++i) {
        scene_put(&m, i % 3, i % 4, 8 + 10 * i);
    }
    while (scene_turn(&m) != 0) {
    }
    death_step_through(&s, 1, adopt_and_copy_on);
    CHECK(s.states > 100);
    pair_scene_close(&m, &s);
}

static void test_death_in_a_replica_turn_that_ends_a_file_ends_equal(void)
{
    struct scene m;
    struct scene s = pair_scene(&m, "a replica turn that ends a file");
    struct shmq_replica_source source = pair_source(master);
    while (DEATH_FILE_SIZE - m.f->append.log.log_end > 600) {
        scene_fill(&m, 0, 1);
    }
    pair_catch_up(master, s.f, &source);
    scene_put(&m, 0, 0, 60);
    scene_put(&m, 1, 1, 300);
    CHECK_EQUAL(scene_turn(&m), 2);
    death_step_through(&s, 1, adopt_and_copy_on);
    CHECK_EQUAL(shmq_load_relaxed(&s.f->control->append.committed_position), DEATH_FILE_SIZE);
    pair_scene_close(&m, &s);
}

int main(void)
{
    RUN(test_death_in_a_replica_turn_ends_equal);
    RUN(test_death_in_a_replica_turn_that_ends_a_file_ends_equal);
    return 0;
}
