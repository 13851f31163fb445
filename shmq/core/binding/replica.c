/* replica.c: the Appender as a slave and as a master: the verbs of replication. What a replica turn needs and cannot
 * have by itself (a file mapped, a queue's row) it asks of the keeper; files that are mapped already it finds. */
#include "append.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define POKES_BATCH 256

/* ---- the append thread ------------------------------------------------------------------------------------ */

/* The master's file at log_end, if it is mapped. 1: it is at hand. */
static int source_pin(struct shmq_appender *self)
{
    uint64_t log_end = self->append.log.log_end;
    struct shmq_log_entry *entry = shmq_log_map_pin(self->source_log, log_end);
    if (entry == NULL) {
        return 0;
    }
    if (self->source_entry != NULL) {
        shmq_log_entry_unpin(self->source_entry);
    }
    self->source_entry = entry;
    self->source.base = entry->base;
    self->source.file_position = entry->file_position;
    return 1;
}

uint32_t shmq_appender_copy(struct shmq_appender *self, uint64_t now_ns)
{
    if (!self->is_following) {
        return 0;
    }
    struct shmq_append *append = &self->append;
    struct shmq_replica_source *source = &self->source;
    uint32_t taken = shmq_replica_turn(append, source, now_ns);
    if (source->need == SHMQ_REPLICA_NEED_FILE && !self->need_asked && source_pin(self)) {
        source->need = SHMQ_REPLICA_NEED_NOTHING;
        taken = shmq_replica_turn(append, source, now_ns);
    }
    if (source->need != SHMQ_REPLICA_NEED_NOTHING && !self->need_asked) {
        self->need_asked = 1;
        shmq_appender_raise_event(self, SHMQ_EVENT_REPLICA);
    }
    shmq_replica_follow_confirmed(append, source);
    uint64_t flushed = shmq_load_relaxed(&append->control->flush.flushed_position); /* relaxed: to compare with */
    if (taken == 0 && flushed != source->flushed_told) {
        shmq_fence_full(); /* pairs with the master's fence in shmq_append_sleep: the flusher's word is out */
    }
    if (taken != 0 || flushed != source->flushed_told) {
        shmq_replica_answer(append, source);
    }
    return taken;
}

void shmq_appender_take_pokes(struct shmq_appender *self)
{
    uint8_t bytes[POKES_BATCH];
    while (self->source_socket >= 0 &&
           recv(self->source_socket, bytes, sizeof bytes, MSG_DONTWAIT) == (ssize_t)sizeof bytes) {
    }
}

/* ---- a slave's verbs -------------------------------------------------------------------------------------- */

/* Under the role, or when nobody can have it. */
static void source_close(struct shmq_appender *self, struct shmq_log_entry **entry, int *socket_fd, int *event_fd)
{
    *entry = self->source_entry;
    *socket_fd = self->source_socket;
    *event_fd = self->is_following ? self->source.event_fd : -1;
    memset(&self->source, 0, sizeof self->source);
    self->source_entry = NULL;
    self->source_socket = -1;
    self->is_following = 0;
    self->need_asked = 0;
}

static void close_fd(int fd)
{
    if (fd >= 0) {
        (void)close(fd);
    }
}

PyObject *shmq_appender_set_slave(struct shmq_appender *self, PyObject *argument)
{
    int is_slave = PyObject_IsTrue(argument);
    if (is_slave < 0 || shmq_appender_open(self, "set_slave") < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    self->is_slave = (uint32_t)is_slave;
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *shmq_appender_follow(struct shmq_appender *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"control", "log_map", "event_fd", "socket_fd", "record_crc_position", NULL};
    struct shmq_module *module = shmq_module_of_type(Py_TYPE(self));
    PyObject *control_object;
    PyObject *log_object;
    int event_fd;
    int socket_fd;
    unsigned long long record_crc_position;
    struct shmq_mapping *control;
    if (module == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "OO!$iiK:follow", names, &control_object, module->log_map_type,
                                     &log_object, &event_fd, &socket_fd, &record_crc_position) ||
        shmq_appender_open(self, "follow") < 0 ||
        shmq_mapping_get(module, control_object, sizeof(struct shmq_control), "follow", &control) < 0) {
        return NULL;
    }
    const struct shmq_control *master = (const struct shmq_control *)(const void *)control->base;
    if (!self->is_slave || self->is_following ||
        shmq_segment_check(&master->header, SHMQ_MAGIC_CONTROL, SHMQ_KIND_CONTROL, UINT64_MAX) != SHMQ_OK ||
        master->config.file_size_bytes != self->append.log.file_size_bytes) {
        PyErr_Format(PyExc_ValueError,
                     "follow: want a slave that follows nobody, and a control segment of this layout whose files have "
                     "%llu bytes",
                     (unsigned long long)self->append.log.file_size_bytes);
        return NULL;
    }
    int own_event = fcntl(event_fd, F_DUPFD_CLOEXEC, 0);
    int own_socket = fcntl(socket_fd, F_DUPFD_CLOEXEC, 0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data = {.u64 = UINT64_MAX}};
    if (own_event < 0 || own_socket < 0 || epoll_ctl(self->epoll_fd, EPOLL_CTL_ADD, own_socket, &event) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        close_fd(own_event);
        close_fd(own_socket);
        return NULL;
    }
    Py_XSETREF(self->source_control, Py_NewRef(control_object));
    struct shmq_log_map *before = self->source_log;
    self->source_log = (struct shmq_log_map *)Py_NewRef(log_object);
    Py_XDECREF((PyObject *)before);
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    self->source = (struct shmq_replica_source){
        .control = master, .event_fd = own_event, .record_crc_position = record_crc_position};
    self->source_socket = own_socket;
    self->is_following = 1;
    self->need_asked = 0;
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *shmq_appender_unfollow(struct shmq_appender *self, PyObject *ignored)
{
    (void)ignored;
    if (shmq_appender_open(self, "unfollow") < 0) {
        return NULL;
    }
    struct shmq_log_entry *entry;
    int socket_fd;
    int event_fd;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    source_close(self, &entry, &socket_fd, &event_fd);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    if (entry != NULL) {
        shmq_log_entry_unpin(entry);
    }
    close_fd(socket_fd); /* leaves epoll with it */
    close_fd(event_fd);
    Py_CLEAR(self->source_control);
    Py_CLEAR(self->source_log);
    Py_RETURN_NONE;
}

PyObject *shmq_appender_replica_need(struct shmq_appender *self, PyObject *ignored)
{
    (void)ignored;
    if (shmq_appender_open(self, "replica_need") < 0) {
        return NULL;
    }
    uint8_t topic[SHMQ_TOPIC_SIZE_V2_MAX];
    struct shmq_replica_source source;
    uint64_t position;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    source = self->source;
    position = self->append.log.log_end;
    if (source.need == SHMQ_REPLICA_NEED_QUEUE) {
        memcpy(topic, source.view.topic, source.view.topic_size); /* it lies in memory that may retire */
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    int is_queue = source.need == SHMQ_REPLICA_NEED_QUEUE;
    PyObject *name = is_queue ? PyBytes_FromStringAndSize((const char *)topic, source.view.topic_size)
                              : Py_NewRef(Py_None);
    return Py_BuildValue("(IKNIKi)", source.need, (unsigned long long)position, name,
                         is_queue ? source.view.queue_id : 0,
                         is_queue ? (unsigned long long)source.view.queue_offset : 0ULL,
                         source.need == SHMQ_REPLICA_NEED_REPAIR ? (int)source.view.reason : 0);
}

PyObject *shmq_appender_replica_go_on(struct shmq_appender *self, PyObject *ignored)
{
    (void)ignored;
    if (shmq_appender_open(self, "replica_go_on") < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    self->source.need = SHMQ_REPLICA_NEED_NOTHING;
    self->need_asked = 0;
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ---- a master's verbs ------------------------------------------------------------------------------------- */

PyObject *shmq_appender_add_replica(struct shmq_appender *self, PyObject *args)
{
    PyObject *object;
    int socket_fd;
    struct shmq_mapping *mapping;
    if (!PyArg_ParseTuple(args, "Oi:add_replica", &object, &socket_fd) ||
        shmq_appender_open(self, "add_replica") < 0 ||
        shmq_mapping_get(shmq_module_of_type(Py_TYPE(self)), object, sizeof(struct shmq_control), "add_replica",
                         &mapping) < 0) {
        return NULL;
    }
    const struct shmq_control *slave = (const struct shmq_control *)(const void *)mapping->base;
    if (shmq_segment_check(&slave->header, SHMQ_MAGIC_CONTROL, SHMQ_KIND_CONTROL, UINT64_MAX) != SHMQ_OK) {
        PyErr_SetString(PyExc_ValueError, "add_replica: that is no control segment of this layout");
        return NULL;
    }
    uint32_t index = 0;
    while (index < SHMQ_REPLICA_MAX && self->replica_controls[index] != NULL) {
        ++index;
    }
    if (index == SHMQ_REPLICA_MAX) {
        return shmq_raise_status(shmq_module_of_type(Py_TYPE(self)), SHMQ_FULL, "add a replica to %u others",
                                 SHMQ_REPLICA_MAX);
    }
    int own = fcntl(socket_fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    self->replica_controls[index] = Py_NewRef(object);
    self->replica_sockets[index] = own;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    self->replicas.replicas[index] = (struct shmq_replica){.control = slave, .socket = (uint32_t)own + 1};
    if (index >= self->replicas.limit) {
        self->replicas.limit = index + 1;
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    return PyLong_FromUnsignedLong(index);
}

static int replica_index(struct shmq_appender *self, unsigned long index, const char *what)
{
    if (shmq_appender_open(self, what) < 0) {
        return -1;
    }
    if (index >= SHMQ_REPLICA_MAX || self->replica_controls[index] == NULL) {
        PyErr_Format(PyExc_ValueError, "%s: there is no replica %lu", what, index);
        return -1;
    }
    return 0;
}

PyObject *shmq_appender_remove_replica(struct shmq_appender *self, PyObject *argument)
{
    unsigned long index = PyLong_AsUnsignedLong(argument);
    if ((index == (unsigned long)-1 && PyErr_Occurred()) || replica_index(self, index, "remove_replica") < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    memset(&self->replicas.replicas[index], 0, sizeof self->replicas.replicas[index]);
    while (self->replicas.limit > 0 && self->replicas.replicas[self->replicas.limit - 1].control == NULL) {
        self->replicas.limit -= 1;
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    close_fd(self->replica_sockets[index]);
    Py_CLEAR(self->replica_controls[index]);
    Py_RETURN_NONE;
}

/* set_replica(index, is_in_sync) -> whether it has all that is confirmed, at the level that counts. */
PyObject *shmq_appender_set_replica(struct shmq_appender *self, PyObject *args)
{
    unsigned int index;
    int is_in_sync;
    if (!PyArg_ParseTuple(args, "Ip:set_replica", &index, &is_in_sync) ||
        replica_index(self, index, "set_replica") < 0) {
        return NULL;
    }
    int has_all;
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    struct shmq_append *append = &self->append;
    struct shmq_replica *replica = &self->replicas.replicas[index];
    replica->is_in_sync = (uint32_t)is_in_sync;
    /* relaxed: own words */
    replica->position = shmq_replica_position(&self->replicas, replica,
                                              shmq_load_relaxed(&append->control->append.committed_position));
    has_all = replica->position >= shmq_load_relaxed(&append->control->replica.confirmed_position);
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(has_all);
}

PyObject *shmq_appender_confirm(struct shmq_appender *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"is_confirming", "needed", "by_flushed", "status", NULL};
    int is_confirming;
    unsigned int needed = 0;
    int by_flushed = 0;
    unsigned int status = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "p|$IpI:confirm", names, &is_confirming, &needed, &by_flushed,
                                     &status) ||
        shmq_appender_open(self, "confirm") < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    self->replicas.is_confirming = (uint32_t)is_confirming;
    self->replicas.needed = needed;
    self->append.replica_status = status;
    if (self->replicas.by_flushed != (uint32_t)by_flushed) {
        self->replicas.by_flushed = (uint32_t)by_flushed;
        for (uint32_t i = 0; i < self->replicas.limit; ++i) {
            self->replicas.replicas[i].position = 0; /* of the other level */
        }
    }
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

void shmq_appender_release_replicas(struct shmq_appender *self)
{
    struct shmq_log_entry *entry;
    int socket_fd;
    int event_fd;
    source_close(self, &entry, &socket_fd, &event_fd);
    if (entry != NULL) {
        shmq_log_entry_unpin(entry);
    }
    close_fd(socket_fd);
    close_fd(event_fd);
    Py_CLEAR(self->source_control);
    Py_CLEAR(self->source_log);
    for (uint32_t i = 0; i < SHMQ_REPLICA_MAX; ++i) {
        if (self->replica_controls[i] != NULL) {
            close_fd(self->replica_sockets[i]);
            Py_CLEAR(self->replica_controls[i]);
        }
    }
    memset(&self->replicas, 0, sizeof self->replicas);
}
