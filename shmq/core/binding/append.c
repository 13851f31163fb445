/* append.c: Appender: the append thread's loop, and the control verbs that take over its role between two
 * turns. Every verb parses with the GIL, then takes the role and works without it, so that neither the append
 * thread ever waits for Python nor Python for a turn longer than one. */
#include "append.h"
#include "slice.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#define APPENDER_IDLE_MS 1000
#define APPENDER_PENDING_MS 100
#define SUBSCRIPTION_MAX (1u << 20)
#define EPOLL_BATCH 64
#define APPENDER_SLICE_NS UINT64_C(100000)

/* ---- the role ---------------------------------------------------------------------------------------- */

/* Call without the GIL. */
void shmq_role_take(struct shmq_appender *self)
{
    atomic_fetch_add_explicit(&self->wanted, 1, memory_order_acq_rel); /* pairs with the look in appender_run */
    pthread_mutex_lock(&self->role);
}

void shmq_role_give(struct shmq_appender *self)
{
    pthread_mutex_unlock(&self->role);
    atomic_fetch_sub_explicit(&self->wanted, 1, memory_order_acq_rel); /* pairs with the wait in role_yield */
    shmq_futex_wake(&self->wanted);
    shmq_appender_nudge(self);
}

/* The append thread stands aside for the control verbs that wait. */
static void role_yield(struct shmq_appender *self)
{
    pthread_mutex_unlock(&self->role);
    for (;;) {
        /* acquire: pairs with role_give */
        uint32_t wanted = shmq_load_acquire32(&self->wanted);
        if (wanted == 0) {
            break;
        }
        shmq_futex_wait(&self->wanted, wanted, 1000000000u);
    }
    pthread_mutex_lock(&self->role);
}

void shmq_appender_nudge(struct shmq_appender *self)
{
    shmq_fence_full(); /* pairs with the fence in shmq_append_sleep */
    /* relaxed: ordered by the fences */
    if ((shmq_load_relaxed32(&self->append.control->sleep.append_sleeps) & 1) != 0) {
        shmq_eventfd_signal(self->wake_fd);
    }
}

void shmq_appender_raise_event(struct shmq_appender *self, uint32_t bits)
{
    /* release: pairs with the acquire exchange in appender_wait_events */
    uint32_t before = atomic_fetch_or_explicit(&self->events, bits, memory_order_acq_rel);
    if ((before & bits) != bits) {
        atomic_fetch_add_explicit(&self->event_bell, 1, memory_order_acq_rel); /* pairs with the wait there */
        shmq_futex_wake(&self->event_bell);
    }
}

/* ---- the loop ---------------------------------------------------------------------------------------- */

/* After a turn that did something: ask for what will soon be missing, and wake the flusher. */
static void after_turn(struct shmq_appender *self)
{
    struct shmq_append *append = &self->append;
    uint64_t ready_end = shmq_load_relaxed(&append->log.ready_end); /* relaxed: written under the role */
    if (ready_end - append->log.log_end <= append->log.file_size_bytes && self->hot_asked != ready_end) {
        self->hot_asked = ready_end;
        shmq_appender_raise_event(self, SHMQ_EVENT_HOT);
    }
    if (append->arena.free_count < self->arena_low && !self->arena_asked) {
        self->arena_asked = 1;
        shmq_appender_raise_event(self, SHMQ_EVENT_ARENA);
    }
    uint32_t sync_wanted = append->flush_wanted > append->flushed_seen;
    if (shmq_load_relaxed32(&self->sync_wanted) != sync_wanted) { /* relaxed: own word */
        shmq_store_release32(&self->sync_wanted, sync_wanted);    /* release: pairs with the flusher's acquire */
        shmq_fence_full(); /* pairs with the fence in flusher_sleep */
    }
    /* relaxed: the fence in shmq_turn_publish, or the one above, orders it behind the commit */
    uint32_t state = shmq_load_relaxed32(&self->flusher_state);
    if (state == SHMQ_FLUSHER_IDLE ||
        (state == SHMQ_FLUSHER_NAPS &&
         (sync_wanted || append->log.log_end - append->flushed_seen > self->unflushed_max))) {
        /* release: pairs with the acquire in flusher_sleep */
        shmq_store_release32(&self->flusher_bell, shmq_load_relaxed32(&self->flusher_bell) + 1);
        shmq_futex_wake(&self->flusher_bell);
    }
}

/* The last looks before it sleeps: 1 if it may, its epoch is odd then. */
static int appender_may_sleep(struct shmq_appender *self)
{
    struct shmq_append *append = &self->append;
    if (self->is_slave) {
        return shmq_replica_sleep(append, self->is_following ? &self->source : NULL);
    }
    shmq_replica_set_want(append, &self->replicas);
    if (!shmq_append_sleep(append)) {
        return 0;
    }
    if (shmq_replica_set_ready(append, &self->replicas)) {
        shmq_sleep_end(&append->control->sleep.append_sleeps);
        return 0;
    }
    return 1;
}

/* Runs turns until stop. Without the GIL. */
static void appender_loop(struct shmq_appender *self)
{
    struct shmq_append *append = &self->append;
    struct epoll_event events[EPOLL_BATCH];
    struct shmq_ladder ladder = {.policy = self->policy};
    uint64_t ended_seen = shmq_load_relaxed(&append->control->counters.sessions_ended); /* relaxed: own */
    uint32_t blocked_seen = 0;
    pthread_mutex_lock(&self->role);
    /* acquire: pairs with the release in appender_stop; endless because it is the broker's heart */
    while (shmq_load_acquire32(&self->stop) == 0) {
        /* acquire: pairs with role_take */
        if (shmq_load_acquire32(&self->wanted) != 0) {
            role_yield(self);
        }
        uint64_t now_ns = shmq_clock_ns(CLOCK_MONOTONIC);
        uint64_t wall_ms = shmq_clock_ns(CLOCK_REALTIME) / 1000000u;
        uint32_t taken =
            self->is_slave ? shmq_appender_copy(self, now_ns) : shmq_turn_run(append, wall_ms, now_ns);
        int confirmed = self->is_slave ? 0 : shmq_replica_set_confirm(append, &self->replicas);
        int settled = shmq_turn_settle(append, now_ns);
        if (self->replicas.limit != 0 && (taken != 0 || confirmed != 0)) {
            if (taken == 0) {
                shmq_fence_full(); /* pairs with the fence in a slave's shmq_replica_sleep */
            }
            shmq_replica_set_tell(&self->replicas, taken != 0);
        }
        if (append->blocked != blocked_seen) {
            blocked_seen = append->blocked;
            if (blocked_seen == (uint32_t)-SHMQ_LOG_FULL) {
                shmq_appender_raise_event(self, SHMQ_EVENT_HOT);
            } else if (blocked_seen == (uint32_t)-SHMQ_ARENA_FULL) {
                shmq_appender_raise_event(self, SHMQ_EVENT_ARENA);
            }
        }
        if (shmq_load_relaxed(&append->control->counters.sessions_ended) != ended_seen) { /* relaxed: own */
            ended_seen = shmq_load_relaxed(&append->control->counters.sessions_ended);    /* relaxed: own */
            shmq_appender_raise_event(self, SHMQ_EVENT_SESSION);
        }
        if (taken != 0 || settled != 0) {
            after_turn(self);
            ladder.step = 0;
            continue;
        }
        if (shmq_ladder_climb(&ladder)) {
            continue;
        }
        if (self->policy == SHMQ_WAIT_BUSY_SPIN || !appender_may_sleep(self)) {
            ladder.step = 0;
            continue;
        }
        int timeout_ms = append->pending_ring_count != 0 ? APPENDER_PENDING_MS : APPENDER_IDLE_MS;
        pthread_mutex_unlock(&self->role);
        /* The eventfds are edge-triggered and never read: no client can fill one to block us. */
        (void)epoll_wait(self->epoll_fd, events, EPOLL_BATCH, timeout_ms);
        pthread_mutex_lock(&self->role);
        shmq_append_wake(append);
        shmq_appender_take_pokes(self);
        ladder.step = 0;
    }
    pthread_mutex_unlock(&self->role);
}

int shmq_appender_open(struct shmq_appender *self, const char *what)
{
    if (self->closed) {
        PyErr_Format(PyExc_ValueError, "%s: the Appender is closed", what);
        return -1;
    }
    return shmq_fork_check(self->fork_count, "an Appender");
}

static PyObject *appender_run(struct shmq_appender *self, PyObject *ignored)
{
    (void)ignored;
    if (shmq_appender_open(self, "run turns") < 0) {
        return NULL;
    }
    uint32_t idle = 0;
    if (!atomic_compare_exchange_strong(&self->running, &idle, 1)) {
        PyErr_SetString(PyExc_RuntimeError, "run turns: another thread is the append thread already");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_slice_ask(APPENDER_SLICE_NS);
    appender_loop(self);
    Py_END_ALLOW_THREADS
    shmq_store_release32(&self->running, 0); /* release: pairs with the compare-exchange above */
    Py_RETURN_NONE;
}

static PyObject *appender_stop(struct shmq_appender *self, PyObject *ignored)
{
    (void)ignored;
    shmq_store_release32(&self->stop, 1); /* release: pairs with the acquire in appender_loop */
    shmq_eventfd_signal(self->wake_fd);
    Py_RETURN_NONE;
}

static PyObject *appender_stop_events(struct shmq_appender *self, PyObject *ignored)
{
    (void)ignored;
    shmq_appender_raise_event(self, SHMQ_EVENT_STOP);
    Py_RETURN_NONE;
}

static PyObject *appender_wait_events(struct shmq_appender *self, PyObject *argument)
{
    double timeout = PyFloat_AsDouble(argument);
    if (timeout == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    if (!(timeout >= 0.0)) {
        timeout = 0.0;
    }
    uint64_t timeout_ns = timeout > 3600.0 ? UINT64_C(3600000000000) : (uint64_t)(timeout * 1e9);
    uint32_t bits;
    Py_BEGIN_ALLOW_THREADS
    /* acquire: pairs with raise_event */
    uint32_t seen = shmq_load_acquire32(&self->event_bell);
    /* acquire + release: takes what was raised, pairs with raise_event */
    bits = atomic_exchange_explicit(&self->events, 0, memory_order_acq_rel);
    if (bits == 0) {
        shmq_futex_wait(&self->event_bell, seen, timeout_ns);
        bits = atomic_exchange_explicit(&self->events, 0, memory_order_acq_rel); /* as above */
    }
    Py_END_ALLOW_THREADS
    return PyLong_FromUnsignedLong(bits);
}

/* ---- making one ---------------------------------------------------------------------------------------- */

static PyObject *control_size(PyObject *module, PyObject *argument)
{
    (void)module;
    unsigned long sessions = PyLong_AsUnsignedLong(argument);
    if (sessions == (unsigned long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    struct shmq_control_config config = {.session_slot_count = (uint32_t)sessions};
    return PyLong_FromUnsignedLongLong(shmq_control_place(&config));
}

static PyObject *init_control(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"control", "file_size_bytes", "hot_slot_count", "session_slot_count",
                            "queue_row_max", "topic_row_max", "arena_block_max", "message_size_max",
                            "store_host", "begin_position", NULL};
    PyObject *object;
    unsigned long long file_size;
    unsigned long long begin;
    const char *host;
    Py_ssize_t host_size;
    struct shmq_control_config config = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O$KIIIIIIy#K:init_control", names, &object, &file_size,
                                     &config.hot_slot_count, &config.session_slot_count,
                                     &config.queue_row_max, &config.topic_row_max, &config.arena_block_max,
                                     &config.message_size_max, &host, &host_size, &begin)) {
        return NULL;
    }
    config.file_size_bytes = file_size;
    uint64_t size = shmq_control_place(&config);
    struct shmq_mapping *mapping;
    if (shmq_mapping_get(shmq_module_state(module), object, size, "init_control", &mapping) < 0) {
        return NULL;
    }
    if (!mapping->writable || host_size != 8 || config.hot_slot_count < 2 ||
        config.hot_slot_count > SHMQ_HOT_SLOT_MAX || file_size == 0 || file_size % SHMQ_PAGE != 0) {
        PyErr_SetString(PyExc_ValueError,
                        "init_control: want a writable mapping, 8 bytes of host, 2 to 64 hot slots, "
                        "whole pages as file size");
        return NULL;
    }
    memcpy(config.store_host, host, sizeof config.store_host);
    struct shmq_control *control = (struct shmq_control *)(void *)mapping->base;
    control->config = config;
    /* relaxed: nobody else has it yet; the header's magic is released last */
    shmq_store_relaxed(&control->append.committed_position, begin);
    shmq_store_relaxed(&control->append.min_position, begin);
    shmq_store_relaxed(&control->append.hot_min_position, begin);
    shmq_store_relaxed(&control->flush.flushed_position, begin);
    shmq_store_relaxed(&control->flush.written_position, begin);
    Py_RETURN_NONE;
}

static void *appender_array(size_t count, size_t size)
{
    return PyMem_RawCalloc(count == 0 ? 1 : count, size);
}

static PyObject *appender_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"control", "topics", "arena", "delay_ms", "flush_timeout", "replica_timeout",
                            "policy", "arena_low", NULL};
    PyObject *control_object;
    PyObject *topics_object;
    PyObject *arena_object;
    PyObject *delays = NULL;
    double flush_timeout = 5.0;
    double replica_timeout = 3.0;
    unsigned int policy = SHMQ_WAIT_ADAPTIVE;
    unsigned int arena_low = 64;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$OddII:Appender", names, &control_object,
                                     &topics_object, &arena_object, &delays, &flush_timeout,
                                     &replica_timeout, &policy, &arena_low)) {
        return NULL;
    }
    struct shmq_module *module = shmq_module_of_type(type);
    struct shmq_mapping *control;
    struct shmq_mapping *topics;
    struct shmq_mapping *arena;
    if (module == NULL ||
        shmq_mapping_get(module, control_object, sizeof(struct shmq_control), "control", &control) < 0 ||
        shmq_mapping_get(module, topics_object, SHMQ_TOPIC_ROWS_PLACE, "topics", &topics) < 0 ||
        shmq_mapping_get(module, arena_object, SHMQ_BLOCK_SIZE, "arena", &arena) < 0) {
        return NULL;
    }
    struct shmq_control *head = (struct shmq_control *)(void *)control->base;
    const struct shmq_control_config *config = &head->config;
    struct shmq_control_config expected = *config;
    if (control->size_bytes < shmq_control_place(&expected) ||
        memcmp(&expected, config, sizeof expected) != 0 || config->hot_slot_count < 2 ||
        config->hot_slot_count > SHMQ_HOT_SLOT_MAX || policy > SHMQ_WAIT_BUSY_SPIN || !control->writable ||
        !topics->writable || !arena->writable) {
        PyErr_SetString(PyExc_ValueError, "Appender: the control segment is not laid out, or not writable");
        return NULL;
    }
    struct shmq_appender *self = (struct shmq_appender *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->epoll_fd = -1;
    self->wake_fd = -1;
    self->source_socket = -1;
    self->fork_count = shmq_fork_count;
    pthread_mutex_init(&self->role, NULL);
    self->control = Py_NewRef(control_object);
    self->topics = Py_NewRef(topics_object);
    self->arena = Py_NewRef(arena_object);
    self->topics_base = topics->base;
    self->policy = policy;
    self->arena_low = arena_low;
    uint32_t sessions = config->session_slot_count;
    size_t bells = (size_t)sessions * SHMQ_CONSUMER_BELL_MAX;
    size_t rings = (size_t)sessions * SHMQ_LANE_MAX;
    struct shmq_append *append = &self->append;
    append->control = head;
    append->topics = topics->base;
    append->arena.base = arena->base;
    append->arena.block_count = shmq_load_relaxed32(&head->append.arena_block_count); /* relaxed: ours */
    append->log.file_size_bytes = config->file_size_bytes;
    append->log.hot_slot_count = config->hot_slot_count;
    append->flush_timeout_ns = (uint64_t)(flush_timeout * 1e9);
    append->replica_timeout_ns = (uint64_t)(replica_timeout * 1e9);
    memcpy(append->born_host, config->store_host, 4); /* the port of a local client means nothing: 0 */
    uint32_t slots = 16;
    while (slots < 2 * config->queue_row_max) {
        slots *= 2;
    }
    append->row_index.mask = slots - 1;
    append->row_index.control = head;
    append->row_index.topics = topics->base;
    self->subscription_max = SUBSCRIPTION_MAX;
    append->row_index.slots = appender_array(slots, sizeof(uint32_t));
    append->arena.free_blocks = appender_array(config->arena_block_max, sizeof(uint32_t));
    append->rings = appender_array(rings, sizeof *append->rings);
    append->rows = appender_array(config->queue_row_max, sizeof *append->rows);
    append->subscriptions = appender_array(SUBSCRIPTION_MAX, sizeof *append->subscriptions);
    append->bells = appender_array(bells, sizeof *append->bells);
    append->marked_bells = appender_array(bells, sizeof(uint32_t));
    append->touched = appender_array(SHMQ_TURN_RECORDS_MAX, sizeof(uint32_t));
    append->pending_rows = appender_array(config->queue_row_max, sizeof(uint32_t));
    append->pending_rings = appender_array(rings, sizeof(uint32_t));
    append->staged = appender_array(SHMQ_TURN_RECORDS_MAX, sizeof *append->staged);
    self->hot = appender_array(SHMQ_HOT_SLOT_MAX, sizeof *self->hot);
    self->memories = appender_array((size_t)sessions * SHMQ_MEMORY_KINDS, sizeof *self->memories);
    self->grants = appender_array(sessions, sizeof *self->grants);
    self->grant_rows = appender_array(sessions, sizeof *self->grant_rows);
    self->event_fds = appender_array(sessions, sizeof *self->event_fds);
    self->sockets = appender_array(sessions, sizeof *self->sockets);
    self->lane_seen = appender_array(rings, sizeof *self->lane_seen);
    self->subscription_free = appender_array(SUBSCRIPTION_MAX, sizeof(uint32_t));
    if (append->row_index.slots == NULL || append->arena.free_blocks == NULL || append->rings == NULL ||
        append->rows == NULL || append->subscriptions == NULL || append->bells == NULL ||
        append->marked_bells == NULL || append->touched == NULL || append->pending_rows == NULL ||
        append->pending_rings == NULL || append->staged == NULL || self->hot == NULL ||
        self->memories == NULL || self->grants == NULL || self->grant_rows == NULL ||
        self->event_fds == NULL || self->sockets == NULL || self->subscription_free == NULL ||
        self->lane_seen == NULL) {
        PyErr_NoMemory();
        Py_DECREF(self);
        return NULL;
    }
    for (uint32_t i = 0; i < sessions; ++i) {
        self->event_fds[i] = self->sockets[i] = -1;
    }
    for (Py_ssize_t i = 0; delays != NULL && delays != Py_None && i < PySequence_Size(delays); ++i) {
        PyObject *item = PySequence_GetItem(delays, i);
        uint64_t delay = item == NULL ? 0 : PyLong_AsUnsignedLongLong(item);
        Py_XDECREF(item);
        if (PyErr_Occurred() || i >= (Py_ssize_t)SHMQ_DELAY_LEVEL_MAX) {
            if (!PyErr_Occurred()) {
                PyErr_Format(PyExc_ValueError, "Appender: %u delay levels at most", SHMQ_DELAY_LEVEL_MAX);
            }
            Py_DECREF(self);
            return NULL;
        }
        append->delay_ms[i + 1] = delay;
        append->delay_level_count = (uint32_t)i + 1;
    }
    self->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    self->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data = {.u64 = UINT64_MAX}};
    if (self->epoll_fd < 0 || self->wake_fd < 0 ||
        epoll_ctl(self->epoll_fd, EPOLL_CTL_ADD, self->wake_fd, &event) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void appender_release(struct shmq_appender *self)
{
    struct shmq_append *append = &self->append;
    uint32_t sessions = append->control == NULL || self->closed ? 0 : append->control->config.session_slot_count;
    self->closed = 1;
    shmq_appender_release_replicas(self);
    for (uint32_t i = 0; i < sessions && self->event_fds != NULL; ++i) {
        if (self->event_fds[i] >= 0) {
            (void)close(self->event_fds[i]);
        }
        if (self->sockets != NULL && self->sockets[i] >= 0) {
            (void)close(self->sockets[i]);
        }
        if (self->grants != NULL) {
            PyMem_RawFree(self->grants[i]);
        }
    }
    for (uint32_t i = 0; i < sessions * SHMQ_MEMORY_KINDS && self->memories != NULL; ++i) {
        Py_CLEAR(self->memories[i]);
    }
    for (uint32_t i = 0; i < SHMQ_HOT_SLOT_MAX && self->hot != NULL; ++i) {
        Py_CLEAR(self->hot[i]);
    }
    void **arrays[] = {(void **)&append->row_index.slots, (void **)&append->arena.free_blocks,
                       (void **)&append->rings, (void **)&append->rows, (void **)&append->subscriptions,
                       (void **)&append->bells, (void **)&append->marked_bells, (void **)&append->touched,
                       (void **)&append->pending_rows, (void **)&append->pending_rings,
                       (void **)&append->staged, (void **)&self->hot, (void **)&self->memories,
                       (void **)&self->grants, (void **)&self->grant_rows, (void **)&self->event_fds,
                       (void **)&self->sockets, (void **)&self->subscription_free,
                       (void **)&self->lane_seen};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; ++i) {
        PyMem_RawFree(*arrays[i]);
        *arrays[i] = NULL;
    }
    append->control = NULL;
    append->stats = NULL;
    if (self->epoll_fd >= 0) {
        (void)close(self->epoll_fd);
    }
    if (self->wake_fd >= 0) {
        (void)close(self->wake_fd);
    }
    self->epoll_fd = self->wake_fd = -1;
    Py_CLEAR(self->control);
    Py_CLEAR(self->topics);
    Py_CLEAR(self->arena);
    Py_CLEAR(self->stats);
}

static void appender_dealloc(struct shmq_appender *self)
{
    PyTypeObject *type = Py_TYPE(self);
    appender_release(self);
    pthread_mutex_destroy(&self->role);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *appender_close(struct shmq_appender *self, PyObject *ignored)
{
    (void)ignored;
    if (shmq_load_acquire32(&self->running) != 0) { /* acquire: pairs with the release in appender_run */
        PyErr_SetString(PyExc_RuntimeError, "close the Appender: its append thread still runs; stop it first");
        return NULL;
    }
    appender_release(self);
    Py_RETURN_NONE;
}

/* ---- recovery -------------------------------------------------------------------------------------------- */

static PyObject *appender_adopt(struct shmq_appender *self, PyObject *ignored)
{
    (void)ignored;
    if (shmq_appender_open(self, "adopt") < 0) {
        return NULL;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    uint8_t *marks = PyMem_RawCalloc(self->append.arena.block_count + 1, 1);
    status = marks == NULL ? SHMQ_FULL : shmq_arena_rebuild(&self->append, marks);
    PyMem_RawFree(marks);
    if (status == SHMQ_OK) {
        status = shmq_turn_redo(&self->append, shmq_clock_ns(CLOCK_MONOTONIC));
    }
    /* release: pairs with the acquire of clients that ask why they wait; what held the predecessor up is not known
     * to hold us up */
    shmq_store_release32(&self->append.control->append.store_status, 0);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(status);
}

static PyObject *appender_replay(struct shmq_appender *self, PyObject *args)
{
    unsigned long long position;
    unsigned long long limit;
    unsigned int demands;
    unsigned long long frames_max;
    if (!PyArg_ParseTuple(args, "KKIK:replay", &position, &limit, &demands, &frames_max) ||
        shmq_appender_open(self, "replay") < 0) {
        return NULL;
    }
    struct shmq_replay replay = {.position = position, .limit = limit, .frames_max = frames_max};
    int status;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    status = shmq_log_replay(&self->append, demands, &replay);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    PyObject *topic = Py_NewRef(Py_None);
    if (status == SHMQ_NO_TOPIC) {
        Py_SETREF(topic, PyBytes_FromStringAndSize((const char *)replay.view.topic, replay.view.topic_size));
    }
    return Py_BuildValue("(iKKKNIKi)", status, (unsigned long long)replay.position,
                         (unsigned long long)replay.frames, (unsigned long long)replay.holes, topic,
                         status == SHMQ_NO_TOPIC ? replay.view.queue_id : 0,
                         status == SHMQ_NO_TOPIC ? (unsigned long long)replay.view.queue_offset : 0ULL,
                         status == SHMQ_CORRUPT ? (int)replay.view.reason : 0);
}

/* begin_at(position, store_timestamp): the log ends here; appends go on from it. Flushed up to it. */
static PyObject *appender_begin_at(struct shmq_appender *self, PyObject *args)
{
    unsigned long long position;
    unsigned long long timestamp;
    if (!PyArg_ParseTuple(args, "KK:begin_at", &position, &timestamp) ||
        shmq_appender_open(self, "begin_at") < 0) {
        return NULL;
    }
    struct shmq_append *append = &self->append;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    append->log.log_end = position;
    if (timestamp > append->store_timestamp) {
        append->store_timestamp = timestamp;
    }
    append->flushed_seen = position;
    /* release: pairs with the acquire of the flusher and of readers; recovery is over */
    shmq_store_release(&append->control->flush.flushed_position, position);
    shmq_store_release(&append->control->flush.written_position, position);     /* release: as above */
    shmq_store_release(&append->control->append.committed_position, position); /* release: as above */
    /* relaxed: a hint for tools */
    shmq_store_relaxed(&append->control->append.store_timestamp, append->store_timestamp);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* take_files(owner, flushed_position): the log is flushed to other files from now on, which hold it up to
 * flushed_position. A death in here leaves them nobody's: the successor looks at its files first. */
static PyObject *appender_take_files(struct shmq_appender *self, PyObject *args)
{
    unsigned long long owner;
    unsigned long long position;
    if (!PyArg_ParseTuple(args, "KK:take_files", &owner, &position) || shmq_appender_open(self, "take_files") < 0) {
        return NULL;
    }
    struct shmq_append *append = &self->append;
    struct shmq_flush_positions *positions = &append->control->flush;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    shmq_store_release(&positions->files_owner, 0); /* release: pairs with the acquire of a successor */
    shmq_fence_full(); /* nobody's before it says anything else: a death in between is seen as such */
    append->flushed_seen = position;
    /* release: pairs with the acquire of readers; no flusher runs yet */
    shmq_store_release(&positions->flushed_position, position);
    shmq_store_release(&positions->written_position, position); /* release: as above */
    /* release: pairs with the acquire of a successor: the positions are this owner's */
    shmq_store_release(&positions->files_owner, owner);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ---- rows -------------------------------------------------------------------------------------------------- */

static PyObject *appender_add_topic(struct shmq_appender *self, PyObject *argument)
{
    char *topic;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(argument, &topic, &size) < 0 || shmq_appender_open(self, "add_topic") < 0) {
        return NULL;
    }
    uint32_t row = 0;
    int status;
    struct shmq_mapping *topics = (struct shmq_mapping *)self->topics;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    uint64_t count = shmq_load_relaxed32(&self->append.control->append.topic_row_count); /* relaxed: own */
    if (SHMQ_TOPIC_ROWS_PLACE + (count + 1) * sizeof(struct shmq_topic_row) > topics->size_bytes) {
        status = SHMQ_FULL;
    } else {
        status = shmq_append_add_topic(&self->append, self->topics_base, (const uint8_t *)topic,
                                       size > (Py_ssize_t)SHMQ_TOPIC_SIZE_MAX ? SHMQ_TOPIC_SIZE_MAX + 1
                                                                              : (uint32_t)size,
                                       &row);
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    if (status != SHMQ_OK) {
        return shmq_raise_status(shmq_module_of_type(Py_TYPE(self)), status, "add topic row for %R", argument);
    }
    return PyLong_FromUnsignedLong(row);
}

static PyObject *appender_delete_topic(struct shmq_appender *self, PyObject *argument)
{
    unsigned long row = PyLong_AsUnsignedLong(argument);
    if ((row == (unsigned long)-1 && PyErr_Occurred()) || shmq_appender_open(self, "delete_topic") < 0) {
        return NULL;
    }
    int status = SHMQ_OK;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    if (row >= shmq_load_relaxed32(&self->append.control->append.topic_row_count)) { /* relaxed: own */
        status = SHMQ_NO_TOPIC;
    } else {
        shmq_append_delete_topic(&self->append, self->topics_base, (uint32_t)row);
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    if (status != SHMQ_OK) {
        return shmq_raise_status(shmq_module_of_type(Py_TYPE(self)), status, "delete topic row %lu", row);
    }
    Py_RETURN_NONE;
}

static PyObject *appender_add_queue(struct shmq_appender *self, PyObject *args)
{
    unsigned int topic_row;
    unsigned int queue_id;
    unsigned int flags;
    unsigned long long first;
    if (!PyArg_ParseTuple(args, "IIIK:add_queue", &topic_row, &queue_id, &flags, &first) ||
        shmq_appender_open(self, "add_queue") < 0) {
        return NULL;
    }
    uint32_t row = 0;
    uint32_t generation = 0;
    int status;
    struct shmq_mapping *control = (struct shmq_mapping *)self->control;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    uint64_t count = shmq_load_relaxed32(&self->append.control->append.queue_row_count); /* relaxed: own */
    if (topic_row >= shmq_load_relaxed32(&self->append.control->append.topic_row_count)) { /* relaxed: own */
        status = SHMQ_NO_TOPIC;
    } else if (self->append.control->config.queue_rows_place + (count + 1) * sizeof(struct shmq_queue_row) >
               control->size_bytes) {
        status = SHMQ_FULL;
    } else {
        status = shmq_append_add_row(&self->append, topic_row, queue_id, flags, first, &row, &generation);
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    if (status != SHMQ_OK) {
        return shmq_raise_status(shmq_module_of_type(Py_TYPE(self)), status,
                                 "add queue %u to topic row %u", queue_id, topic_row);
    }
    return Py_BuildValue("(II)", row, generation);
}

/* Parses a live row index. */
static int appender_row(struct shmq_appender *self, unsigned long row, const char *what)
{
    if (shmq_appender_open(self, what) < 0) {
        return -1;
    }
    if (row >= shmq_load_relaxed32(&self->append.control->append.queue_row_count)) { /* relaxed: a bound */
        (void)shmq_raise_status(shmq_module_of_type(Py_TYPE(self)), SHMQ_NO_TOPIC, "%s %lu: no such row", what,
                                row);
        return -1;
    }
    return 0;
}

static PyObject *appender_set_queue(struct shmq_appender *self, PyObject *args)
{
    unsigned int row;
    unsigned int state;
    unsigned int flags;
    if (!PyArg_ParseTuple(args, "III:set_queue", &row, &state, &flags) ||
        appender_row(self, row, "set_queue") < 0) {
        return NULL;
    }
    if (state != SHMQ_ROW_ACTIVE && state != SHMQ_ROW_READ_ONLY) {
        PyErr_Format(PyExc_ValueError, "set_queue: state %u, want ROW_ACTIVE or ROW_READ_ONLY", state);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    shmq_append_set_row(&self->append, row, state, flags);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *appender_delete_queue(struct shmq_appender *self, PyObject *argument)
{
    unsigned long row = PyLong_AsUnsignedLong(argument);
    if ((row == (unsigned long)-1 && PyErr_Occurred()) || appender_row(self, row, "delete_queue") < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    shmq_append_delete_row(&self->append, (uint32_t)row);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* reserve(row, max_queue_offset): offsets of damaged messages are not given again. */
static PyObject *appender_reserve(struct shmq_appender *self, PyObject *args)
{
    unsigned int row;
    unsigned long long max;
    if (!PyArg_ParseTuple(args, "IK:reserve", &row, &max) || appender_row(self, row, "reserve") < 0) {
        return NULL;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    status = shmq_append_reserve(&self->append, row, max);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(status);
}

/* set_min(row, min_queue_offset): retention took what lies below it. */
static PyObject *appender_set_min(struct shmq_appender *self, PyObject *args)
{
    unsigned int row;
    unsigned long long min;
    if (!PyArg_ParseTuple(args, "IK:set_min", &row, &min) || appender_row(self, row, "set_min") < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    struct shmq_queue_row *queue = shmq_control_queue_row(self->append.control, row);
    /* release: pairs with the acquire of whoever asks for the minimum */
    shmq_store_release(&queue->min_queue_offset, min);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *appender_set_min_position(struct shmq_appender *self, PyObject *argument)
{
    unsigned long long position = PyLong_AsUnsignedLongLong(argument);
    if ((position == (unsigned long long)-1 && PyErr_Occurred()) ||
        shmq_appender_open(self, "set_min_position") < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    /* release: pairs with the acquire of readers that look for old files */
    shmq_store_release(&self->append.control->append.min_position, position);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* set_status(status): 0, or the positive status for which sends are refused; FLUSH_FAILED is for good. */
static PyObject *appender_set_status(struct shmq_appender *self, PyObject *argument)
{
    unsigned long status = PyLong_AsUnsignedLong(argument);
    if ((status == (unsigned long)-1 && PyErr_Occurred()) || shmq_appender_open(self, "set_status") < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    struct shmq_append *append = &self->append;
    if (append->blocked != (uint32_t)-SHMQ_FLUSH_FAILED) { /* for good, whatever else comes and goes */
        /* release: pairs with the acquire of clients that ask why they wait */
        shmq_store_release32(&append->control->append.store_status, (uint32_t)status);
    }
    if (status == (uint32_t)-SHMQ_FLUSH_FAILED) {
        append->blocked = (uint32_t)status;
        shmq_fence_full(); /* pairs with the sleepers' fences in shmq_sleep_begin */
        for (uint32_t i = 0; i < append->ring_limit; ++i) {
            if (append->rings[i].state == SHMQ_RING_LIVE) {
                shmq_ring_wake(&append->rings[i], 1, 1); /* they wait for what does not come any more */
            }
        }
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ---- arena and hot slots ------------------------------------------------------------------------------------ */

static PyObject *appender_grow_arena(struct shmq_appender *self, PyObject *argument)
{
    unsigned long count = PyLong_AsUnsignedLong(argument);
    if ((count == (unsigned long)-1 && PyErr_Occurred()) || shmq_appender_open(self, "grow_arena") < 0) {
        return NULL;
    }
    struct shmq_mapping *mapping = (struct shmq_mapping *)self->arena;
    if (count > self->append.control->config.arena_block_max ||
        (uint64_t)count * SHMQ_BLOCK_SIZE > mapping->size_bytes) {
        PyErr_Format(PyExc_ValueError, "grow_arena: %lu blocks, the segment has %llu bytes", count,
                     (unsigned long long)mapping->size_bytes);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    struct shmq_arena *arena = &self->append.arena;
    uint32_t before = arena->block_count == 0 ? 1 : arena->block_count; /* block 0 is the segment's head */
    for (uint32_t number = (uint32_t)count; number-- > before;) {
        shmq_arena_free(arena, number);
    }
    if (count > arena->block_count) {
        arena->block_count = (uint32_t)count;
        /* release: pairs with the acquire of readers that bound block numbers by it */
        shmq_store_release32(&self->append.control->append.arena_block_count, (uint32_t)count);
    }
    self->arena_asked = 0;
    if (self->append.blocked == (uint32_t)-SHMQ_ARENA_FULL) {
        self->append.blocked = 0;
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* trim(first_row, row_count, min_position) -> blocks freed. */
static PyObject *appender_trim(struct shmq_appender *self, PyObject *args)
{
    unsigned int first;
    unsigned int count;
    unsigned long long min_position;
    if (!PyArg_ParseTuple(args, "IIK:trim", &first, &count, &min_position) ||
        shmq_appender_open(self, "trim") < 0) {
        return NULL;
    }
    unsigned long freed = 0;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    uint32_t rows = shmq_load_relaxed32(&self->append.control->append.queue_row_count); /* relaxed: own */
    for (uint32_t i = first; i < rows && i - first < count; ++i) {
        struct shmq_queue_row *queue = shmq_control_queue_row(self->append.control, i);
        uint32_t state = shmq_load_relaxed32(&queue->state); /* relaxed: own */
        if (state == SHMQ_ROW_ACTIVE || state == SHMQ_ROW_READ_ONLY) {
            struct shmq_row *row = &self->append.rows[i];
            freed += shmq_consume_queue_trim(&self->append.arena, queue, &row->chain, min_position);
            row->staged_room = row->chain.tail_room;
        }
    }
    if (freed != 0) {
        self->arena_asked = 0;
        if (self->append.blocked == (uint32_t)-SHMQ_ARENA_FULL) {
            self->append.blocked = 0;
        }
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    return PyLong_FromUnsignedLong(freed);
}

static PyObject *appender_ready(struct shmq_appender *self, PyObject *args)
{
    unsigned long long file_position;
    PyObject *object;
    unsigned long long number;
    struct shmq_mapping *mapping;
    if (!PyArg_ParseTuple(args, "KOK:ready", &file_position, &object, &number) ||
        shmq_appender_open(self, "ready") < 0 ||
        shmq_mapping_get(shmq_module_of_type(Py_TYPE(self)), object, self->append.log.file_size_bytes,
                         "ready", &mapping) < 0) {
        return NULL;
    }
    uint32_t slot = shmq_commit_log_slot(&self->append.log, file_position);
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    shmq_append_ready(&self->append, file_position, mapping->base, number);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    PyObject *before = self->hot[slot];
    self->hot[slot] = Py_NewRef(object);
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

/* adopt_hot(file_position, mapping): memory that a predecessor had made ready; its slot is as it left it. */
static PyObject *appender_adopt_hot(struct shmq_appender *self, PyObject *args)
{
    unsigned long long file_position;
    PyObject *object;
    struct shmq_mapping *mapping;
    if (!PyArg_ParseTuple(args, "KO:adopt_hot", &file_position, &object) ||
        shmq_appender_open(self, "adopt_hot") < 0 ||
        shmq_mapping_get(shmq_module_of_type(Py_TYPE(self)), object, self->append.log.file_size_bytes,
                         "adopt_hot", &mapping) < 0) {
        return NULL;
    }
    uint32_t slot = shmq_commit_log_slot(&self->append.log, file_position);
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    self->append.log.bases[slot] = mapping->base;
    self->append.log.file_positions[slot] = file_position;
    uint64_t end = file_position + self->append.log.file_size_bytes;
    if (end > shmq_load_relaxed(&self->append.log.ready_end)) { /* relaxed: own word */
        shmq_store_release(&self->append.log.ready_end, end);   /* release: pairs with shmq_commit_log_claim */
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    PyObject *before = self->hot[slot];
    self->hot[slot] = Py_NewRef(object);
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

static PyObject *appender_retire(struct shmq_appender *self, PyObject *argument)
{
    unsigned long long file_position = PyLong_AsUnsignedLongLong(argument);
    if ((file_position == (unsigned long long)-1 && PyErr_Occurred()) || shmq_appender_open(self, "retire") < 0) {
        return NULL;
    }
    int status = SHMQ_OK;
    uint32_t slot = shmq_commit_log_slot(&self->append.log, file_position);
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    /* relaxed: the flusher's word only grows */
    if (self->append.log.file_positions[slot] != file_position || self->append.log.bases[slot] == NULL ||
        file_position + self->append.log.file_size_bytes >
            shmq_load_relaxed(&self->append.control->flush.flushed_position)) {
        status = SHMQ_ILLEGAL;
    } else {
        shmq_append_retire(&self->append, file_position);
        self->append.log.bases[slot] = NULL;
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    if (status != SHMQ_OK) {
        return shmq_raise_status(shmq_module_of_type(Py_TYPE(self)), status,
                                 "retire the file at %llu: it is not in its slot, or not flushed yet",
                                 file_position);
    }
    PyObject *before = self->hot[slot];
    self->hot[slot] = NULL;
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

/* ---- sessions ------------------------------------------------------------------------------------------------ */

static int appender_session(struct shmq_appender *self, unsigned int session, const char *what)
{
    if (shmq_appender_open(self, what) < 0) {
        return -1;
    }
    if (session >= self->append.control->config.session_slot_count) {
        PyErr_Format(PyExc_ValueError, "%s: session %u of %u", what, session,
                     self->append.control->config.session_slot_count);
        return -1;
    }
    return 0;
}

static int optional_mapping(struct shmq_module *module, PyObject *object, uint64_t size, const char *what,
                            struct shmq_mapping **out)
{
    *out = NULL;
    return object == Py_None ? 0 : shmq_mapping_get(module, object, size, what, out);
}

/* attach(session, ingress, completion, consumer, chunk, event_fd, fields | None): fields None resumes. */
static PyObject *appender_attach(struct shmq_appender *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"session", "ingress", "completion", "consumer", "chunk", "event_fd", "fresh",
                            "lane_count", "lane_capacity_bytes", "completion_capacity", "claim_capacity",
                            "uid", "pid", "pid_start_time", "ingress_inode", "ingress_size_bytes",
                            "consumer_inode", "consumer_size_bytes", "chunk_inode", "chunk_size_bytes",
                            "completion_number", "service_id", "property_grants", NULL};
    unsigned int session;
    PyObject *objects[SHMQ_MEMORY_KINDS] = {Py_None, Py_None, Py_None, Py_None};
    int event_fd = -1;
    int fresh = 0;
    struct shmq_session_slot fields = {0};
    unsigned long long wide[8] = {0};
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "I|$OOOOipIIIIIIKKKKKKKKII:attach", names, &session, &objects[SHMQ_MEMORY_INGRESS],
            &objects[SHMQ_MEMORY_COMPLETION], &objects[SHMQ_MEMORY_CONSUMER], &objects[SHMQ_MEMORY_CHUNK], &event_fd, &fresh,
            &fields.lane_count, &fields.lane_capacity_bytes, &fields.completion_capacity,
            &fields.claim_capacity, &fields.uid, &fields.pid, &wide[0], &wide[1], &wide[2], &wide[3], &wide[4],
            &wide[5], &wide[6], &wide[7], &fields.service_id, &fields.property_grants) ||
        appender_session(self, session, "attach") < 0) {
        return NULL;
    }
    struct shmq_module *module = shmq_module_of_type(Py_TYPE(self));
    struct shmq_session_slot *slot = shmq_control_session_slot(self->append.control, session);
    if (!fresh) {
        fields = *slot;
    } else {
        fields.pid_start_time = wide[0];
        fields.ingress_inode = wide[1];
        fields.ingress_size_bytes = wide[2];
        fields.consumer_inode = wide[3];
        fields.consumer_size_bytes = wide[4];
        fields.chunk_inode = wide[5];
        fields.chunk_size_bytes = wide[6];
        fields.completion_number = wide[7];
    }
    uint32_t lanes = fields.lane_count;
    uint32_t capacity = fields.lane_capacity_bytes;
    uint32_t completions = fields.completion_capacity;
    int rings_used = objects[SHMQ_MEMORY_INGRESS] != Py_None;
    if (lanes > SHMQ_LANE_MAX || (lanes != 0) != rings_used ||
        (lanes != 0 && (capacity < SHMQ_PAGE || (capacity & (capacity - 1)) != 0 || completions == 0 ||
                        (completions & (completions - 1)) != 0)) ||
        fields.service_id > SHMQ_SERVICE_MAX) {
        PyErr_Format(PyExc_ValueError,
                     "attach session %u: %u lanes of %u bytes and %u completions; want up to %u lanes, powers "
                     "of two, at least a page",
                     session, lanes, capacity, completions, SHMQ_LANE_MAX);
        return NULL;
    }
    struct shmq_mapping *mappings[SHMQ_MEMORY_KINDS];
    if (optional_mapping(module, objects[SHMQ_MEMORY_INGRESS], shmq_ingress_size(lanes, capacity), "ingress",
                         &mappings[SHMQ_MEMORY_INGRESS]) < 0 ||
        shmq_mapping_get(module, objects[SHMQ_MEMORY_COMPLETION], shmq_completion_size(lanes, completions),
                         "completion", &mappings[SHMQ_MEMORY_COMPLETION]) < 0 ||
        optional_mapping(module, objects[SHMQ_MEMORY_CONSUMER], SHMQ_CLAIMS_PLACE, "consumer",
                         &mappings[SHMQ_MEMORY_CONSUMER]) < 0 ||
        optional_mapping(module, objects[SHMQ_MEMORY_CHUNK], SHMQ_CHUNK_DATA_PLACE, "chunk",
                         &mappings[SHMQ_MEMORY_CHUNK]) < 0) {
        return NULL;
    }
    int kept_fd = -1;
    if (event_fd >= 0) {
        kept_fd = fcntl(event_fd, F_DUPFD_CLOEXEC, 0);
        struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data = {.u64 = session}};
        if (kept_fd < 0 || epoll_ctl(self->epoll_fd, EPOLL_CTL_ADD, kept_fd, &event) < 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            if (kept_fd >= 0) {
                (void)close(kept_fd);
            }
            return NULL;
        }
    }
    int status = SHMQ_OK;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    uint32_t state = shmq_load_relaxed32(&slot->state); /* relaxed: own word */
    if (self->memories[session * SHMQ_MEMORY_KINDS + SHMQ_MEMORY_COMPLETION] != NULL ||
        (fresh ? state != SHMQ_SESSION_FREE : state != SHMQ_SESSION_LIVE)) {
        status = SHMQ_ILLEGAL;
    } else {
        if (fresh) {
            fields.generation = slot->generation + 1;
            shmq_store_relaxed32(&fields.state, SHMQ_SESSION_FREE); /* relaxed: a local */
            memcpy(slot, &fields, sizeof fields);
            shmq_append_clear_rings(&self->append, session);
        }
        struct shmq_session_memory memory = {
            .ingress = rings_used ? mappings[SHMQ_MEMORY_INGRESS]->base : NULL,
            .completion = mappings[SHMQ_MEMORY_COMPLETION]->base,
            .consumer = mappings[SHMQ_MEMORY_CONSUMER] == NULL ? NULL : mappings[SHMQ_MEMORY_CONSUMER]->base,
            .chunk = mappings[SHMQ_MEMORY_CHUNK] == NULL ? NULL : mappings[SHMQ_MEMORY_CHUNK]->base,
            .chunk_size = mappings[SHMQ_MEMORY_CHUNK] == NULL ? 0 : mappings[SHMQ_MEMORY_CHUNK]->size_bytes,
            .grants = self->grants[session],
            .grant_rows = self->grant_rows[session],
        };
        shmq_append_attach(&self->append, session, &memory);
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    if (status != SHMQ_OK) {
        if (kept_fd >= 0) {
            (void)epoll_ctl(self->epoll_fd, EPOLL_CTL_DEL, kept_fd, NULL);
            (void)close(kept_fd);
        }
        return shmq_raise_status(module, status, "attach session %u: its slot is in use", session);
    }
    self->event_fds[session] = kept_fd;
    for (int kind = 0; kind < SHMQ_MEMORY_KINDS; ++kind) {
        self->memories[session * SHMQ_MEMORY_KINDS + (unsigned int)kind] =
            objects[kind] == Py_None ? NULL : Py_NewRef(objects[kind]);
    }
    shmq_appender_begin_counts(self, session);
    return PyLong_FromUnsignedLong(slot->generation);
}

static PyObject *appender_set_chunk(struct shmq_appender *self, PyObject *args)
{
    unsigned int session;
    PyObject *object;
    unsigned long long inode;
    struct shmq_mapping *mapping;
    if (!PyArg_ParseTuple(args, "IOK:set_chunk", &session, &object, &inode) ||
        appender_session(self, session, "set_chunk") < 0 ||
        shmq_mapping_get(shmq_module_of_type(Py_TYPE(self)), object, SHMQ_CHUNK_DATA_PLACE + 1, "chunk",
                         &mapping) < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    struct shmq_session_slot *slot = shmq_control_session_slot(self->append.control, session);
    slot->chunk_inode = inode;
    slot->chunk_size_bytes = mapping->size_bytes;
    for (uint32_t lane = 0; lane < SHMQ_LANE_MAX; ++lane) {
        struct shmq_ring *ring = &self->append.rings[session * SHMQ_LANE_MAX + lane];
        ring->chunk = mapping->base + SHMQ_CHUNK_DATA_PLACE;
        ring->chunk_size = mapping->size_bytes - SHMQ_CHUNK_DATA_PLACE;
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    Py_XSETREF(self->memories[session * SHMQ_MEMORY_KINDS + SHMQ_MEMORY_CHUNK], Py_NewRef(object));
    Py_RETURN_NONE;
}

/* set_socket(session, fd): the descriptor is duplicated; one that was set before is closed. */
static PyObject *appender_set_socket(struct shmq_appender *self, PyObject *args)
{
    unsigned int session;
    int fd;
    if (!PyArg_ParseTuple(args, "Ii:set_socket", &session, &fd) ||
        appender_session(self, session, "set_socket") < 0) {
        return NULL;
    }
    if (self->memories[session * SHMQ_MEMORY_KINDS + SHMQ_MEMORY_COMPLETION] == NULL) {
        PyErr_Format(PyExc_ValueError, "set_socket: session %u is not attached", session);
        return NULL;
    }
    int kept_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (kept_fd < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    shmq_append_set_socket(&self->append, session, (uint32_t)kept_fd + 1);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    if (self->sockets[session] >= 0) {
        (void)close(self->sockets[session]);
    }
    self->sockets[session] = kept_fd;
    Py_RETURN_NONE;
}

/* set_grant(session, row, allowed) */
static PyObject *appender_set_grant(struct shmq_appender *self, PyObject *args)
{
    unsigned int session;
    unsigned int row;
    int allowed;
    if (!PyArg_ParseTuple(args, "IIp:set_grant", &session, &row, &allowed) ||
        appender_session(self, session, "set_grant") < 0) {
        return NULL;
    }
    if (row >= self->append.control->config.queue_row_max) {
        PyErr_Format(PyExc_ValueError, "set_grant: row %u of %u", row,
                     self->append.control->config.queue_row_max);
        return NULL;
    }
    uint64_t *old = self->grants[session];
    uint64_t *bitmap = old;
    uint32_t rows = self->grant_rows[session];
    if (row >= rows) {
        uint32_t wanted = rows == 0 ? 64 : rows;
        while (wanted <= row) {
            wanted *= 2;
        }
        bitmap = PyMem_RawCalloc(wanted / 64, sizeof *bitmap);
        if (bitmap == NULL) {
            return PyErr_NoMemory();
        }
        if (old != NULL) {
            memcpy(bitmap, old, rows / 8);
        }
        rows = wanted;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    if (allowed) {
        bitmap[row / 64] |= UINT64_C(1) << (row % 64);
    } else {
        bitmap[row / 64] &= ~(UINT64_C(1) << (row % 64));
    }
    shmq_append_grant(&self->append, session, bitmap, rows);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    if (bitmap != old) {
        self->grants[session] = bitmap;
        self->grant_rows[session] = rows;
        PyMem_RawFree(old);
    }
    Py_RETURN_NONE;
}

static PyObject *appender_drained(struct shmq_appender *self, PyObject *argument)
{
    unsigned long session = PyLong_AsUnsignedLong(argument);
    if ((session == (unsigned long)-1 && PyErr_Occurred()) ||
        appender_session(self, (unsigned int)session, "drained") < 0) {
        return NULL;
    }
    int drained;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    /* a slave takes nothing, so that nothing is waited for */
    drained = self->is_slave || shmq_append_drained(&self->append, (uint32_t)session);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(drained);
}

static PyObject *appender_detach(struct shmq_appender *self, PyObject *argument)
{
    unsigned long session = PyLong_AsUnsignedLong(argument);
    if ((session == (unsigned long)-1 && PyErr_Occurred()) ||
        appender_session(self, (unsigned int)session, "detach") < 0) {
        return NULL;
    }
    shmq_appender_take_counts(self, (uint32_t)session);
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    uint32_t rows = shmq_load_relaxed32(&self->append.control->append.queue_row_count); /* relaxed: own */
    for (uint32_t bell = (uint32_t)session * SHMQ_CONSUMER_BELL_MAX;
         bell < ((uint32_t)session + 1) * SHMQ_CONSUMER_BELL_MAX; ++bell) {
        for (uint32_t row = 0; self->append.bells[bell].line != NULL && row < rows; ++row) {
            uint32_t node = shmq_append_unsubscribe(&self->append, row, bell);
            if (node != 0) {
                self->subscription_free[self->subscription_free_count++] = node;
            }
        }
    }
    shmq_append_detach(&self->append, (uint32_t)session);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    if (self->event_fds[session] >= 0) {
        (void)epoll_ctl(self->epoll_fd, EPOLL_CTL_DEL, self->event_fds[session], NULL);
        (void)close(self->event_fds[session]);
        self->event_fds[session] = -1;
    }
    if (self->sockets[session] >= 0) {
        (void)close(self->sockets[session]); /* its client reads the end of it */
        self->sockets[session] = -1;
    }
    PyMem_RawFree(self->grants[session]);
    self->grants[session] = NULL;
    self->grant_rows[session] = 0;
    for (unsigned int kind = 0; kind < SHMQ_MEMORY_KINDS; ++kind) {
        Py_CLEAR(self->memories[session * SHMQ_MEMORY_KINDS + kind]);
    }
    Py_RETURN_NONE;
}

/* free_session(session): the slot of a session that was never resumed. */
static PyObject *appender_free_session(struct shmq_appender *self, PyObject *argument)
{
    unsigned long session = PyLong_AsUnsignedLong(argument);
    if ((session == (unsigned long)-1 && PyErr_Occurred()) ||
        appender_session(self, (unsigned int)session, "free_session") < 0) {
        return NULL;
    }
    if (self->memories[session * SHMQ_MEMORY_KINDS + SHMQ_MEMORY_COMPLETION] != NULL) {
        PyErr_Format(PyExc_ValueError, "free_session %lu: it is attached; detach it", session);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    /* release: pairs with the acquire of whoever lists sessions */
    shmq_store_release32(&shmq_control_session_slot(self->append.control, (uint32_t)session)->state,
                         SHMQ_SESSION_FREE);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *appender_subscribe(struct shmq_appender *self, PyObject *args)
{
    unsigned int session;
    unsigned int bell;
    unsigned int row;
    if (!PyArg_ParseTuple(args, "III:subscribe", &session, &bell, &row) ||
        appender_session(self, session, "subscribe") < 0 || appender_row(self, row, "subscribe") < 0) {
        return NULL;
    }
    if (bell >= SHMQ_CONSUMER_BELL_MAX) {
        PyErr_Format(PyExc_ValueError, "subscribe: bell %u of %u", bell, SHMQ_CONSUMER_BELL_MAX);
        return NULL;
    }
    uint32_t index = session * SHMQ_CONSUMER_BELL_MAX + bell;
    int status = SHMQ_OK;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    uint32_t node = shmq_append_unsubscribe(&self->append, row, index); /* twice is once */
    if (node == 0 && self->subscription_free_count > 0) {
        node = self->subscription_free[--self->subscription_free_count];
    }
    if (node == 0 && self->append.subscriptions[0].next + 1 < self->subscription_max) {
        node = ++self->append.subscriptions[0].next; /* node 0 counts the nodes ever handed out */
    }
    if (node == 0) {
        status = SHMQ_FULL;
    } else {
        shmq_append_subscribe(&self->append, row, index, node);
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    if (status != SHMQ_OK) {
        return shmq_raise_status(shmq_module_of_type(Py_TYPE(self)), status, "subscribe session %u to row %u",
                                 session, row);
    }
    Py_RETURN_NONE;
}

static PyObject *appender_unsubscribe(struct shmq_appender *self, PyObject *args)
{
    unsigned int session;
    unsigned int bell;
    unsigned int row;
    if (!PyArg_ParseTuple(args, "III:unsubscribe", &session, &bell, &row) ||
        appender_session(self, session, "unsubscribe") < 0 || appender_row(self, row, "unsubscribe") < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    uint32_t node = shmq_append_unsubscribe(&self->append, row, session * SHMQ_CONSUMER_BELL_MAX + bell);
    if (node != 0) {
        self->subscription_free[self->subscription_free_count++] = node;
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *appender_state(struct shmq_appender *self, PyObject *ignored)
{
    (void)ignored;
    if (shmq_appender_open(self, "state") < 0) {
        return NULL;
    }
    uint32_t blocked;
    uint32_t free_count;
    uint64_t log_end;
    uint64_t ready_end;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    blocked = self->append.blocked;
    free_count = self->append.arena.free_count;
    log_end = self->append.log.log_end;
    ready_end = shmq_load_relaxed(&self->append.log.ready_end); /* relaxed: under the role */
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("{sIsIsKsK}", "blocked", blocked, "arena_free_blocks", free_count, "log_end",
                         (unsigned long long)log_end, "ready_end", (unsigned long long)ready_end);
}

static PyMethodDef appender_methods[] = {
#define METHOD(name, function, flags, doc) {name, (PyCFunction)(void (*)(void))function, flags, doc}
    METHOD("run", appender_run, METH_NOARGS, "Runs turns in this thread, without the GIL, until stop()."),
    METHOD("stop", appender_stop, METH_NOARGS, "Asks run() to return after the turn at hand."),
    METHOD("close", appender_close, METH_NOARGS, "Lets go of all memory. run() must have returned."),
    METHOD("wait_events", appender_wait_events, METH_O,
           "wait_events(timeout) -> int: EVENT_* bits raised since the last call; waits without the GIL."),
    METHOD("stop_events", appender_stop_events, METH_NOARGS, "Makes wait_events return EVENT_STOP."),
    METHOD("adopt", appender_adopt, METH_NOARGS,
           "adopt() -> status: rebuilds the free blocks and redoes the last turn of a dead predecessor."),
    METHOD("replay", appender_replay, METH_VARARGS,
           "replay(position, limit, demands, frames_max) -> (status, position, frames, holes, topic, "
           "queue_id, queue_offset, reason)."),
    METHOD("begin_at", appender_begin_at, METH_VARARGS,
           "begin_at(position, store_timestamp): appends go on here; everything below is flushed."),
    METHOD("take_files", appender_take_files, METH_VARARGS,
           "take_files(owner, flushed_position): the files are this owner's, and hold the log up to there."),
    METHOD("add_topic", appender_add_topic, METH_O, "add_topic(name: bytes) -> topic row."),
    METHOD("delete_topic", appender_delete_topic, METH_O, "delete_topic(topic_row): the row is free."),
    METHOD("add_queue", appender_add_queue, METH_VARARGS,
           "add_queue(topic_row, queue_id, flags, first_queue_offset) -> (row, generation)."),
    METHOD("set_queue", appender_set_queue, METH_VARARGS, "set_queue(row, state, flags)."),
    METHOD("delete_queue", appender_delete_queue, METH_O, "delete_queue(row): its handles are stale."),
    METHOD("reserve", appender_reserve, METH_VARARGS, "reserve(row, max_queue_offset) -> status."),
    METHOD("set_min", appender_set_min, METH_VARARGS, "set_min(row, min_queue_offset)."),
    METHOD("set_min_position", appender_set_min_position, METH_O, "set_min_position(physical_offset)."),
    METHOD("set_status", appender_set_status, METH_O,
           "set_status(positive status or 0): why sends are refused; FLUSH_FAILED stops them for good."),
    METHOD("grow_arena", appender_grow_arena, METH_O, "grow_arena(block_count): the segment has grown."),
    METHOD("trim", appender_trim, METH_VARARGS, "trim(first_row, row_count, min_position) -> blocks freed."),
    METHOD("ready", appender_ready, METH_VARARGS, "ready(file_position, hot: Mapping, object_number)."),
    METHOD("adopt_hot", appender_adopt_hot, METH_VARARGS, "adopt_hot(file_position, hot: Mapping)."),
    METHOD("retire", appender_retire, METH_O, "retire(file_position): out of hot memory; it is flushed."),
    METHOD("attach", appender_attach, METH_VARARGS | METH_KEYWORDS,
           "attach(session, *, ingress, completion, consumer, chunk, event_fd, fresh, ...) -> generation."),
    METHOD("set_chunk", appender_set_chunk, METH_VARARGS, "set_chunk(session, chunk: Mapping, inode)."),
    METHOD("set_grant", appender_set_grant, METH_VARARGS, "set_grant(session, row, allowed)."),
    METHOD("drained", appender_drained, METH_O, "drained(session) -> bool: all it published is taken."),
    METHOD("detach", appender_detach, METH_O, "detach(session): its memory may be unmapped."),
    METHOD("free_session", appender_free_session, METH_O, "free_session(session): frees an orphan slot."),
    METHOD("set_socket", appender_set_socket, METH_VARARGS,
           "set_socket(session, fd): a stream socket that gets a byte with each bell of the session that is rung."),
    METHOD("subscribe", appender_subscribe, METH_VARARGS, "subscribe(session, bell, row)."),
    METHOD("unsubscribe", appender_unsubscribe, METH_VARARGS, "unsubscribe(session, bell, row)."),
    METHOD("set_slave", shmq_appender_set_slave, METH_O,
           "set_slave(is_slave): a slave takes no message; what it has it copies from its master."),
    METHOD("follow", shmq_appender_follow, METH_VARARGS | METH_KEYWORDS,
           "follow(control: Mapping, log_map: LogMap, *, event_fd, socket_fd, record_crc_position): copy from there."),
    METHOD("unfollow", shmq_appender_unfollow, METH_NOARGS, "unfollow(): lets go of the master."),
    METHOD("replica_need", shmq_appender_replica_need, METH_NOARGS,
           "replica_need() -> (need, position, topic, queue_id, queue_offset, reason): what replica turns wait for."),
    METHOD("replica_go_on", shmq_appender_replica_go_on, METH_NOARGS, "replica_go_on(): it is there, or try again."),
    METHOD("add_replica", shmq_appender_add_replica, METH_VARARGS,
           "add_replica(control: Mapping, socket_fd) -> index: a slave, not in sync yet."),
    METHOD("remove_replica", shmq_appender_remove_replica, METH_O, "remove_replica(index): nobody waits for it."),
    METHOD("set_replica", shmq_appender_set_replica, METH_VARARGS,
           "set_replica(index, is_in_sync) -> bool: it has all that is confirmed."),
    METHOD("confirm", shmq_appender_confirm, METH_VARARGS | METH_KEYWORDS,
           "confirm(is_confirming, *, needed=0, by_flushed=False, status=0): what confirmed_position follows."),
    METHOD("set_stats", shmq_appender_set_stats, METH_O, "set_stats(stats: Mapping): where to count what exporters read."),
    METHOD("look", shmq_appender_look, METH_NOARGS, "look(): takes what producers have counted into the stats object."),
    METHOD("state", appender_state, METH_NOARGS, "state() -> dict of what only the append role knows."),
#undef METHOD
    {NULL, NULL, 0, NULL},
};

static PyType_Slot appender_slots[] = {
    {Py_tp_new, (void *)(uintptr_t)appender_new},
    {Py_tp_dealloc, (void *)(uintptr_t)appender_dealloc},
    {Py_tp_methods, appender_methods},
    {Py_tp_doc, "Appender(control, topics, arena, *, delay_ms=(), flush_timeout=5.0, replica_timeout=3.0, "
                "policy=WAIT_ADAPTIVE, arena_low=64): the append role of one store."},
    {0, NULL},
};

static PyType_Spec appender_spec = {
    .name = "shmq.core._core.Appender",
    .basicsize = sizeof(struct shmq_appender),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = appender_slots,
};

static PyMethodDef append_functions[] = {
    {"control_size", control_size, METH_O,
     "control_size(session_slot_count) -> int: bytes of a control segment without queue rows."},
    {"init_control", (PyCFunction)(void (*)(void))init_control, METH_VARARGS | METH_KEYWORDS,
     "init_control(control, *, ...): lays out a new control segment, all but its header."},
    {NULL, NULL, 0, NULL},
};

int shmq_add_append(PyObject *module)
{
    struct shmq_module *state = shmq_module_state(module);
    state->appender_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &appender_spec, NULL);
    if (state->appender_type == NULL || PyModule_AddType(module, state->appender_type) < 0 ||
        PyModule_AddIntConstant(module, "EVENT_HOT", SHMQ_EVENT_HOT) < 0 ||
        PyModule_AddIntConstant(module, "EVENT_ARENA", SHMQ_EVENT_ARENA) < 0 ||
        PyModule_AddIntConstant(module, "EVENT_SESSION", SHMQ_EVENT_SESSION) < 0 ||
        PyModule_AddIntConstant(module, "EVENT_STOP", SHMQ_EVENT_STOP) < 0 ||
        PyModule_AddIntConstant(module, "EVENT_REPLICA", SHMQ_EVENT_REPLICA) < 0 ||
        PyModule_AddIntConstant(module, "REPLICA_MAX", SHMQ_REPLICA_MAX) < 0 ||
        PyModule_AddIntConstant(module, "NEED_FILE", SHMQ_REPLICA_NEED_FILE) < 0 ||
        PyModule_AddIntConstant(module, "NEED_QUEUE", SHMQ_REPLICA_NEED_QUEUE) < 0 ||
        PyModule_AddIntConstant(module, "NEED_REPAIR", SHMQ_REPLICA_NEED_REPAIR) < 0 ||
        PyModule_AddIntConstant(module, "NEED_MASTER", SHMQ_REPLICA_NEED_MASTER) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, append_functions);
}
