/* shmq-test: plain */
/* shmq-test: full-timeout 3000 */
/* The broker dies in a turn, and its successor dies at every instruction of adoption, resumption and the first turn
 * of its own; the next one finds everything. */
#define _GNU_SOURCE
#include "death.h"

static void one_turn(struct scene *s)
{
    (void)scene_turn(s);
}

static void succeed(struct scene *s)
{
    fixture_succeed(s->f);
}

static void adopt_and_go_on(struct scene *s)
{
    TRUTH(fixture_adopt_shared(s->f) == SHMQ_OK);
    for (uint32_t i = 0; i < DEATH_WRITERS; ++i) {
        fixture_resume(s->f, i);
    }
    (void)scene_turn(s);
}

static uint64_t states;
static uint64_t deaths;

static void adopt_and_die(struct scene *s)
{
    char name[64];
    snprintf(name, sizeof name, "adopting state %" PRIu64 " of a turn", deaths++);
    s->name = name;
    s->prepare = succeed;
    s->work = adopt_and_go_on;
    s->states = 0;
    death_step_through(s, 1, death_recover_and_go_on);
    states += s->states;
}

static void test_death_in_an_adoption_is_cured_by_the_next(void)
{
    struct scene s;
    scene_open(&s, "a turn");
    scene_fill(&s, 0, SHMQ_BLOCK_ENTRIES - 1);
    scene_put(&s, 0, 0, 8);
    scene_put(&s, 0, 0, 40); /* begins a block */
    scene_put(&s, 1, 1, 8);  /* the first of its queue */
    scene_put(&s, 1, 3, 8);  /* SYNC */
    scene_put(&s, 2, 2, 8);  /* a service's */
    s.work = one_turn;
    death_step_through(&s, stepper_is_full_run() ? 1 : 23, adopt_and_die);
    printf("%" PRIu64 " deaths in adoptions of %" PRIu64 " deaths\n", states, deaths);
    scene_close(&s);
}

static void delete_row(struct scene *s)
{
    shmq_append_delete_row(&s->f->append, s->rows[1]);
}

static void test_death_in_an_adoption_behind_half_a_deletion_is_cured_by_the_next(void)
{
    struct scene s;
    scene_open(&s, "deleting a row");
    for (uint32_t i = 0; i < 10; ++i) {
        scene_put(&s, i % 2, i % 2, 8);
    }
    CHECK_EQUAL(scene_turn(&s), 10);
    s.work = delete_row;
    death_step_through(&s, stepper_is_full_run() ? 1 : 3, adopt_and_die);
    scene_close(&s);
}

int main(void)
{
    RUN(test_death_in_an_adoption_is_cured_by_the_next);
    RUN(test_death_in_an_adoption_behind_half_a_deletion_is_cured_by_the_next);
    return 0;
}
