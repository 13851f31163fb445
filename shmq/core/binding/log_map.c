/* log_map.c: LogMap, and its remap thread, which serves the log channel without the GIL so that the broker
 * gets its memory back even while the program is busy elsewhere.
 *
 * Packets, 32 bytes each way, with at most one fd: kind, zero, file_position, size in bytes, zero.
 * Remapping maps the file somewhere else first, compares what a wrong file would betray, and only then maps it
 * over the segment; the segment's fd is kept until that has succeeded, so that whatever fails the addresses
 * hold the old bytes, and the broker gets no answer. */
#include "log_map.h"

#include "arguments.h"
#include "message_object.h"

#include "shmq/message.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

enum log_packet_kind {
    LOG_PACKET_HOT = 1,
    LOG_PACKET_RETIRED = 2,
    LOG_PACKET_FILE = 3,
    LOG_PACKET_FORGET = 4,
    LOG_PACKET_GONE = 5,
};

struct log_packet {
    uint32_t kind;
    uint32_t reserved;
    uint64_t file_position;
    uint64_t size_bytes;
    uint64_t reserved_word;
};
_Static_assert(sizeof(struct log_packet) == 32, "the broker's LogChannel sends 32 bytes");

/* A wait of a Python thread is cut into pieces of this length, so that signals are seen. */
#define LOG_WAIT_SLICE_NS 1000000000u
/* Bytes at either end of a file that are compared with the segment before it is mapped over it. */
#define LOG_COMPARE_SIZE SHMQ_PAGE

/* ---- the table: everything here is called with the lock ------------------------------------------------ */

static struct shmq_log_entry **log_bucket(struct shmq_log_map *self, uint64_t file_position)
{
    return &self->buckets[file_position / self->file_size_bytes % SHMQ_LOG_BUCKETS];
}

static struct shmq_log_entry *log_find(struct shmq_log_map *self, uint64_t file_position)
{
    struct shmq_log_entry *entry = *log_bucket(self, file_position);
    while (entry != NULL && entry->file_position != file_position) {
        entry = entry->next;
    }
    return entry;
}

void shmq_log_entry_free(struct shmq_log_entry *entry)
{
    (void)munmap((void *)(uintptr_t)entry->base, entry->size_bytes);
    if (entry->hot_fd >= 0) {
        (void)close(entry->hot_fd);
    }
    free(entry);
}

/* Takes an entry out of the table. True if it had no pin and is unmapped now. */
static int log_leave(struct shmq_log_map *self, struct shmq_log_entry *entry)
{
    struct shmq_log_entry **link = log_bucket(self, entry->file_position);
    while (*link != entry) {
        link = &(*link)->next;
    }
    *link = entry->next;
    /* release + acquire: pairs with shmq_log_entry_unpin: one of the two sees the other and frees */
    if (atomic_fetch_or_explicit(&entry->pins, SHMQ_LOG_ENTRY_LEFT, memory_order_acq_rel) != 0) {
        return 0;
    }
    shmq_log_entry_free(entry);
    return 1;
}

/* Unmaps the files that nobody looks at and that were looked up longest ago, down to cold_max. */
static void log_evict(struct shmq_log_map *self)
{
    for (;;) { /* bounded: each round but the last takes one entry out */
        struct shmq_log_entry *oldest = NULL;
        uint32_t cold = 0;
        for (uint32_t i = 0; i < SHMQ_LOG_BUCKETS; ++i) {
            for (struct shmq_log_entry *entry = self->buckets[i]; entry != NULL; entry = entry->next) {
                /* relaxed: no new first pin without the lock */
                if (entry->hot_fd < 0 && shmq_load_relaxed32(&entry->pins) == 0) {
                    cold += 1;
                    if (oldest == NULL || entry->used < oldest->used) {
                        oldest = entry;
                    }
                }
            }
        }
        if (cold <= self->cold_max) {
            return;
        }
        (void)log_leave(self, oldest);
    }
}

/* Leaves all files, not the segments: nobody has told us which were removed while there was no channel. Those that are
 * there are asked for again. */
static void log_leave_files(struct shmq_log_map *self)
{
    for (uint32_t i = 0; i < SHMQ_LOG_BUCKETS; ++i) {
        struct shmq_log_entry *next;
        for (struct shmq_log_entry *entry = self->buckets[i]; entry != NULL; entry = next) {
            next = entry->next;
            if (entry->hot_fd < 0) {
                (void)log_leave(self, entry);
            }
        }
    }
}

static void log_answer(struct shmq_log_map *self, uint64_t file_position, int status)
{
    for (struct shmq_log_request *request = self->requests; request != NULL; request = request->next) {
        if (request->file_position == file_position && request->status == SHMQ_EMPTY) {
            request->status = status;
        }
    }
    pthread_cond_broadcast(&self->answered);
}

/* ---- mapping: called without the lock ------------------------------------------------------------------- */

/* Maps a whole file or segment read-only. errno is set if it fails; a file that is too short is EINVAL: its
 * missing pages would be SIGBUS. */
static const uint8_t *log_mmap(const struct shmq_log_map *self, int fd)
{
    struct stat status;
    if (fstat(fd, &status) < 0) {
        return NULL;
    }
    if ((uint64_t)status.st_size < self->file_size_bytes) {
        errno = EINVAL;
        return NULL;
    }
    void *base = mmap(NULL, self->file_size_bytes, PROT_READ, MAP_SHARED, fd, 0);
    return base == MAP_FAILED ? NULL : base;
}

/* Maps fd for file_position unless that is mapped already. Takes the fd in any case. 0, or -1 with errno. */
static int log_add(struct shmq_log_map *self, uint64_t file_position, int fd, int is_hot)
{
    struct shmq_log_entry *entry = calloc(1, sizeof *entry);
    const uint8_t *base = entry == NULL ? NULL : log_mmap(self, fd);
    if (base == NULL) {
        int error = entry == NULL ? ENOMEM : errno;
        free(entry);
        (void)close(fd);
        errno = error;
        return -1;
    }
    entry->base = base;
    entry->file_position = file_position;
    entry->size_bytes = self->file_size_bytes;
    entry->hot_fd = is_hot ? fd : -1;
    shmq_store_relaxed32(&entry->is_file, !is_hot); /* relaxed: nobody else has it yet */
    if (!is_hot) {
        (void)close(fd);
    }
    pthread_mutex_lock(&self->lock);
    int is_new = log_find(self, file_position) == NULL;
    if (is_new) {
        struct shmq_log_entry **bucket = log_bucket(self, file_position);
        entry->used = ++self->used;
        entry->next = *bucket;
        *bucket = entry;
        if (!is_hot) {
            log_evict(self);
        }
    }
    log_answer(self, file_position, SHMQ_OK);
    pthread_mutex_unlock(&self->lock);
    if (!is_new) {
        shmq_log_entry_free(entry); /* announced twice: what is mapped has the same bytes */
    }
    return 0;
}

/* 0 if the file holds the same bytes there as memory, else an errno. Read, not mapped: an error of the disk is
 * a value then and no signal. */
static int log_compare(int fd, off_t place, const uint8_t *memory)
{
    uint8_t bytes[LOG_COMPARE_SIZE];
    ssize_t size = pread(fd, bytes, sizeof bytes, place);
    if (size != (ssize_t)sizeof bytes) {
        return size < 0 ? errno : EIO;
    }
    return memcmp(bytes, memory, sizeof bytes) == 0 ? 0 : ESTALE;
}

/* Lets the complete file take the place of the hot segment under the same addresses. Takes the fd. 0: nothing
 * of the segment is mapped here any more; -1 with errno: all is as before. */
static int log_retire(struct shmq_log_map *self, uint64_t file_position, int fd)
{
    int error = 0;
    pthread_mutex_lock(&self->lock);
    struct shmq_log_entry *entry = log_find(self, file_position);
    if (entry != NULL && entry->hot_fd >= 0) {
        shmq_log_entry_pin(entry);
    } else {
        entry = NULL;
    }
    pthread_mutex_unlock(&self->lock);
    if (entry == NULL) {
        (void)close(fd);
        return 0;
    }
    /* Mapped elsewhere first: whatever the file system objects to is known before the old mapping goes. */
    const uint8_t *trial = log_mmap(self, fd);
    if (trial == NULL) {
        error = errno;
    } else {
        (void)munmap((void *)(uintptr_t)trial, self->file_size_bytes);
        error = log_compare(fd, 0, entry->base);
    }
    if (error == 0) {
        uint64_t last = self->file_size_bytes - LOG_COMPARE_SIZE;
        error = log_compare(fd, (off_t)last, entry->base + last);
    }
    pthread_mutex_lock(&self->lock);
    if (error == 0 && entry->hot_fd >= 0) {
        void *at = (void *)(uintptr_t)entry->base;
        if (mmap(at, self->file_size_bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
            error = errno;
            /* The kernel may have unmapped before it failed: put the segment back. */
            (void)mmap(at, self->file_size_bytes, PROT_READ, MAP_SHARED | MAP_FIXED, entry->hot_fd, 0);
        } else {
            (void)close(entry->hot_fd);
            entry->hot_fd = -1;
            shmq_store_relaxed32(&entry->is_file, 1); /* relaxed: no byte has changed, from now on one may */
            self->remap_count += 1;
        }
    }
    shmq_log_entry_unpin(entry);
    log_evict(self);
    pthread_mutex_unlock(&self->lock);
    (void)close(fd);
    errno = error;
    return error == 0 ? 0 : -1;
}

/* The first segment at or behind a position that is mapped as hot memory, or UINT64_MAX. */
static uint64_t log_next_hot(struct shmq_log_map *self, uint64_t position)
{
    uint64_t found = UINT64_MAX;
    pthread_mutex_lock(&self->lock);
    for (uint32_t i = 0; i < SHMQ_LOG_BUCKETS; ++i) {
        for (struct shmq_log_entry *entry = self->buckets[i]; entry != NULL; entry = entry->next) {
            if (entry->hot_fd >= 0 && entry->file_position >= position && entry->file_position < found) {
                found = entry->file_position;
            }
        }
    }
    pthread_mutex_unlock(&self->lock);
    return found;
}

/* True unless something is mapped for file_position still, because it is pinned. */
static int log_forget(struct shmq_log_map *self, uint64_t file_position)
{
    pthread_mutex_lock(&self->lock);
    struct shmq_log_entry *entry = log_find(self, file_position);
    int is_unmapped = entry == NULL || log_leave(self, entry);
    pthread_mutex_unlock(&self->lock);
    return is_unmapped;
}

struct shmq_log_entry *shmq_log_map_pin(struct shmq_log_map *self, uint64_t physical_offset)
{
    pthread_mutex_lock(&self->lock);
    struct shmq_log_entry *entry = log_find(self, physical_offset - physical_offset % self->file_size_bytes);
    if (entry != NULL) {
        entry->used = ++self->used;
        shmq_log_entry_pin(entry);
    }
    pthread_mutex_unlock(&self->lock);
    return entry;
}

/* ---- the remap thread ------------------------------------------------------------------------------------- */

/* Sends a packet without an fd; waits for room in the channel until the map is stopped, or for timeout_ms (-1:
 * no bound, for the remap thread: a broker that does not read is the broker's affair). True if it was sent. */
static int log_send(struct shmq_log_map *self, const struct log_packet *packet, int timeout_ms)
{
    for (;;) {
        ssize_t sent = send(self->channel_fd, packet, sizeof *packet, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent == (ssize_t)sizeof *packet) {
            return 1;
        }
        if (errno != EAGAIN && errno != EINTR) {
            return 0;
        }
        struct pollfd polled[2] = {{.fd = self->channel_fd, .events = POLLOUT},
                                   {.fd = self->stop_fd, .events = POLLIN}};
        if (poll(polled, 2, timeout_ms) == 0 || polled[1].revents != 0) {
            return 0;
        }
    }
}

/* Receives one packet and its fd (-1 if none). 1; 0: nothing to read now; -1: the channel has ended. */
static int log_receive(int channel_fd, struct log_packet *packet, int *fd)
{
    union {
        char room[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    memset(&control, 0, sizeof control);
    struct iovec vector = {.iov_base = packet, .iov_len = sizeof *packet};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.room,
                             .msg_controllen = sizeof control.room};
    *fd = -1;
    ssize_t size = recvmsg(channel_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size < 0) {
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    }
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head != NULL && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
        memcpy(fd, CMSG_DATA(head), sizeof *fd);
    }
    if (size == 0) {
        return -1;
    }
    if (size != (ssize_t)sizeof *packet || (message.msg_flags & MSG_TRUNC) != 0) {
        packet->kind = 0; /* refused below */
    }
    return 1;
}

/* Asks for the files of segments before the first one in memory. They retired while we had no channel: nobody asks
 * us to leave them, and their memory, unlinked, would stay as long as we do. */
static void log_leave_behind(struct shmq_log_map *self, uint64_t hot_min)
{
    uint64_t position = log_next_hot(self, 0);
    while (position < hot_min) { /* bounded: the segments that are mapped */
        const struct log_packet request = {
            .kind = LOG_PACKET_FILE, .file_position = position, .size_bytes = self->file_size_bytes};
        if (!log_send(self, &request, -1)) {
            return; /* stopped, or the broker is gone: the next channel begins with this again */
        }
        position = log_next_hot(self, position + 1);
    }
}

/* Serves one packet and takes its fd. */
static void log_serve(struct shmq_log_map *self, const struct log_packet *packet, int fd)
{
    int is_fit = packet->file_position % self->file_size_bytes == 0 &&
                 packet->size_bytes == self->file_size_bytes;
    int is_done = 0;
    int is_answered = 0;
    if (is_fit && fd >= 0 && packet->kind == LOG_PACKET_FILE &&
        log_next_hot(self, packet->file_position) == packet->file_position) {
        is_done = log_retire(self, packet->file_position, fd) == 0;
    } else if (is_fit && fd >= 0 && (packet->kind == LOG_PACKET_HOT || packet->kind == LOG_PACKET_FILE)) {
        if (packet->kind == LOG_PACKET_HOT && !self->is_hot_known) { /* a channel begins with all of them, in order */
            self->is_hot_known = 1;
            log_leave_behind(self, packet->file_position);
        }
        is_done = log_add(self, packet->file_position, fd, packet->kind == LOG_PACKET_HOT) == 0;
    } else if (is_fit && fd >= 0 && packet->kind == LOG_PACKET_RETIRED) {
        is_done = is_answered = log_retire(self, packet->file_position, fd) == 0;
    } else if (fd < 0 && packet->kind == LOG_PACKET_FORGET) {
        (void)log_forget(self, packet->file_position);
        is_done = 1;
    } else if (fd < 0 && packet->kind == LOG_PACKET_GONE) {
        /* Also what becomes of a RETIRED whose file went meanwhile: the broker waits for an answer then, and gets one
         * unless somebody still looks at the segment. */
        is_answered = log_forget(self, packet->file_position);
        is_done = 1;
        pthread_mutex_lock(&self->lock);
        log_answer(self, packet->file_position, SHMQ_OFFSET_TOO_SMALL);
        pthread_mutex_unlock(&self->lock);
    } else if (fd >= 0) {
        (void)close(fd);
    }
    if (!is_done) {
        pthread_mutex_lock(&self->lock);
        self->refused_count += 1;
        pthread_mutex_unlock(&self->lock);
    }
    if (is_answered) {
        struct log_packet answer = *packet;
        answer.kind = LOG_PACKET_RETIRED;
        (void)log_send(self, &answer, -1);
    }
}

static void *log_thread(void *argument)
{
    struct shmq_log_map *self = argument;
    for (;;) { /* until stopped, or the broker's end is closed; asleep unless there is a packet */
        struct pollfd polled[2] = {{.fd = self->channel_fd, .events = POLLIN},
                                   {.fd = self->stop_fd, .events = POLLIN}};
        if (poll(polled, 2, -1) < 0 && errno != EINTR) {
            break;
        }
        if (polled[1].revents != 0) {
            break;
        }
        struct log_packet packet = {0};
        int fd = -1;
        int received = log_receive(self->channel_fd, &packet, &fd);
        if (received < 0) {
            break;
        }
        if (received > 0) {
            log_serve(self, &packet, fd);
        }
    }
    /* release: pairs with the acquire in shmq_log_map_request */
    shmq_store_release32(&self->channel_open, 0);
    pthread_mutex_lock(&self->lock);
    for (struct shmq_log_request *request = self->requests; request != NULL; request = request->next) {
        if (request->status == SHMQ_EMPTY) {
            request->status = SHMQ_CLOSED;
        }
    }
    pthread_cond_broadcast(&self->answered);
    pthread_mutex_unlock(&self->lock);
    return NULL;
}

/* Ends the thread if there is one. Called with the GIL, waits without it. */
static void log_stop(struct shmq_log_map *self)
{
    if (!self->thread_started) {
        return;
    }
    self->thread_started = 0;
    shmq_eventfd_signal(self->stop_fd);
    Py_BEGIN_ALLOW_THREADS
    (void)pthread_join(self->thread, NULL);
    pthread_mutex_lock(&self->lock);
    while (self->requests != NULL) { /* bounded: the thread has answered them all, and stop_fd ends their sends */
        (void)pthread_cond_wait(&self->answered, &self->lock);
    }
    pthread_mutex_unlock(&self->lock);
    Py_END_ALLOW_THREADS
    (void)close(self->channel_fd);
    (void)close(self->stop_fd);
    self->channel_fd = self->stop_fd = -1;
}

/* ---- requests ---------------------------------------------------------------------------------------------- */

static int log_send_request(struct shmq_log_map *self, uint64_t file_position, uint64_t timeout_ns)
{
    struct log_packet packet = {.kind = LOG_PACKET_FILE, .file_position = file_position,
                                .size_bytes = self->file_size_bytes};
    int timeout_ms = timeout_ns > LOG_WAIT_SLICE_NS ? 1000 : (int)(timeout_ns / 1000000u);
    return log_send(self, &packet, timeout_ms);
}

/* In the list while it may use the channel's fds, which log_stop closes once the list is empty. Without the GIL. */
static int log_wait_answer(struct shmq_log_map *self, struct shmq_log_request *request, uint64_t until_ns)
{
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u),
                             .tv_nsec = (long)(until_ns % 1000000000u)};
    pthread_mutex_lock(&self->lock);
    int error = 0;
    while (request->status == SHMQ_EMPTY && error == 0) {
        error = pthread_cond_timedwait(&self->answered, &self->lock, &until);
    }
    int status = request->status;
    pthread_mutex_unlock(&self->lock);
    return status;
}

int shmq_log_map_request(struct shmq_log_map *self, uint64_t file_position, uint64_t timeout_ns)
{
    struct shmq_log_request request = {.file_position = file_position, .status = SHMQ_EMPTY};
    pthread_mutex_lock(&self->lock);
    if (log_find(self, file_position) != NULL) {
        request.status = SHMQ_OK;
    } else if (!self->thread_started || shmq_load_acquire32(&self->channel_open) == 0) {
        request.status = SHMQ_CLOSED; /* acquire above: pairs with the release at the end of log_thread */
    } else {
        request.next = self->requests;
        self->requests = &request;
    }
    int status = request.status;
    pthread_mutex_unlock(&self->lock);
    if (status != SHMQ_EMPTY) {
        return status;
    }
    uint64_t now_ns = shmq_clock_ns(CLOCK_MONOTONIC);
    uint64_t deadline_ns = now_ns + timeout_ns;
    int is_sent = 0;
    int raised = 0;
    Py_INCREF(self);
    while (status == SHMQ_EMPTY && !raised && (!is_sent || now_ns < deadline_ns)) { /* bounded: slices */
        uint64_t until_ns = deadline_ns - now_ns > LOG_WAIT_SLICE_NS ? now_ns + LOG_WAIT_SLICE_NS : deadline_ns;
        Py_BEGIN_ALLOW_THREADS
        if (!is_sent) {
            is_sent = log_send_request(self, file_position, until_ns - now_ns);
        }
        status = log_wait_answer(self, &request, until_ns);
        Py_END_ALLOW_THREADS
        now_ns = shmq_clock_ns(CLOCK_MONOTONIC);
        raised = status == SHMQ_EMPTY && PyErr_CheckSignals() < 0;
        if (now_ns >= deadline_ns) {
            break;
        }
    }
    pthread_mutex_lock(&self->lock);
    struct shmq_log_request **link = &self->requests;
    while (*link != &request) {
        link = &(*link)->next;
    }
    *link = request.next;
    pthread_cond_broadcast(&self->answered); /* log_stop may wait for an empty list */
    pthread_mutex_unlock(&self->lock);
    Py_DECREF(self);
    return raised ? 1 : status == SHMQ_EMPTY ? SHMQ_TIMED_OUT : status;
}

/* ---- the type -------------------------------------------------------------------------------------------------- */

static PyObject *log_map_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"file_size", "cold_max", NULL};
    unsigned long long file_size;
    unsigned int cold_max = 16;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$KI:LogMap", names, &file_size, &cold_max)) {
        return NULL;
    }
    if (file_size < SHMQ_PAGE || file_size % SHMQ_PAGE != 0 || file_size > (UINT64_C(1) << 40)) {
        PyErr_Format(PyExc_ValueError, "LogMap: file_size is %llu, want whole pages up to 2**40", file_size);
        return NULL;
    }
    struct shmq_log_map *self = (struct shmq_log_map *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->module = shmq_module_of_type(type);
    self->file_size_bytes = file_size;
    self->cold_max = cold_max;
    self->fork_count = shmq_fork_count;
    self->channel_fd = self->stop_fd = -1;
    pthread_condattr_t attributes;
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_mutex_init(&self->lock, NULL);
    (void)pthread_cond_init(&self->answered, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    return (PyObject *)self;
}

static void log_leave_all(struct shmq_log_map *self)
{
    pthread_mutex_lock(&self->lock);
    for (uint32_t i = 0; i < SHMQ_LOG_BUCKETS; ++i) {
        while (self->buckets[i] != NULL) {
            (void)log_leave(self, self->buckets[i]);
        }
    }
    pthread_mutex_unlock(&self->lock);
}

static void log_map_dealloc(struct shmq_log_map *self)
{
    PyTypeObject *type = Py_TYPE(self);
    /* In a child of fork there is no remap thread, and the lock may be held for ever: leave it all to exit. */
    if (self->fork_count == shmq_fork_count) {
        log_stop(self);
        log_leave_all(self);
        (void)pthread_cond_destroy(&self->answered);
        (void)pthread_mutex_destroy(&self->lock);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

static int log_map_check(struct shmq_log_map *self, const char *what)
{
    if (shmq_fork_check(self->fork_count, "a LogMap") < 0) {
        return -1;
    }
    if (self->closed) {
        shmq_raise("ClosedError", "%s: the LogMap is closed", what);
        return -1;
    }
    return 0;
}

static int log_map_position(struct shmq_log_map *self, uint64_t file_position, const char *what)
{
    if (file_position % self->file_size_bytes != 0) {
        PyErr_Format(PyExc_ValueError, "%s: no file begins at %llu, files have %llu bytes", what,
                     (unsigned long long)file_position, (unsigned long long)self->file_size_bytes);
        return -1;
    }
    return log_map_check(self, what);
}

/* A duplicate of the caller's fd that is ours, or -1 with an exception. */
static int log_map_own_fd(int fd)
{
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return own;
}

static PyObject *log_map_start(struct shmq_log_map *self, PyObject *argument)
{
    int fd = PyObject_AsFileDescriptor(argument);
    if (fd < 0 || log_map_check(self, "start the remap thread") < 0) {
        return NULL;
    }
    /* acquire: pairs with the release at the end of log_thread */
    if (self->thread_started && shmq_load_acquire32(&self->channel_open) != 0) {
        PyErr_SetString(PyExc_RuntimeError, "start the remap thread: it serves another channel; stop it first");
        return NULL;
    }
    log_stop(self); /* its channel has ended: a broker that died has a successor with a new channel */
    pthread_mutex_lock(&self->lock);
    log_leave_files(self);
    pthread_mutex_unlock(&self->lock);
    int own = log_map_own_fd(fd);
    if (own < 0) {
        return NULL;
    }
    self->is_hot_known = 0;
    self->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    self->channel_fd = own;
    int error = self->stop_fd < 0 ? errno : 0;
    if (error == 0) {
        sigset_t all;
        sigset_t before;
        shmq_store_release32(&self->channel_open, 1); /* release: pairs with the acquire in the request */
        (void)sigfillset(&all);
        (void)pthread_sigmask(SIG_BLOCK, &all, &before); /* Python's handlers belong to Python's threads */
        error = pthread_create(&self->thread, NULL, log_thread, self);
        (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (error != 0) {
        (void)close(own);
        if (self->stop_fd >= 0) {
            (void)close(self->stop_fd);
        }
        self->channel_fd = self->stop_fd = -1;
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    self->thread_started = 1;
    (void)pthread_setname_np(self->thread, "shmq-remap");
    Py_RETURN_NONE;
}

static PyObject *log_map_stop(struct shmq_log_map *self, PyObject *ignored)
{
    (void)ignored;
    if (shmq_fork_check(self->fork_count, "a LogMap") < 0) {
        return NULL;
    }
    log_stop(self);
    Py_RETURN_NONE;
}

static PyObject *log_map_close(struct shmq_log_map *self, PyObject *args)
{
    (void)args;
    if (shmq_fork_check(self->fork_count, "a LogMap") < 0) {
        return NULL;
    }
    if (!self->closed) {
        self->closed = 1;
        log_stop(self);
        log_leave_all(self);
    }
    Py_RETURN_NONE;
}

static PyObject *log_map_enter(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    return Py_NewRef(self);
}

static PyObject *log_map_add(struct shmq_log_map *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"file_position", "fd", "hot", NULL};
    unsigned long long file_position;
    int fd;
    int is_hot = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Ki|$p:add", names, &file_position, &fd, &is_hot) ||
        log_map_position(self, file_position, "map a file of the log") < 0) {
        return NULL;
    }
    int own = log_map_own_fd(fd);
    int status = -1;
    int error = 0;
    if (own < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = log_add(self, file_position, own, is_hot);
    error = errno;
    Py_END_ALLOW_THREADS
    if (status < 0) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

/* An entry that is in no table: memory of our own, with these bytes, and the caller's pin. NULL with an exception. */
static struct shmq_log_entry *log_copied_entry(const uint8_t *bytes, size_t size)
{
    struct shmq_log_entry *entry = calloc(1, sizeof *entry);
    if (entry == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        free(entry);
        PyErr_SetFromErrno(PyExc_OSError);
        return NULL;
    }
    memcpy(base, bytes, size);
    (void)mprotect(base, size, PROT_READ); /* as in a log that is mapped: views of a message cannot change it */
    entry->base = base;
    entry->size_bytes = size;
    entry->hot_fd = -1;
    /* relaxed: nobody else knows it yet */
    shmq_store_relaxed32(&entry->pins, SHMQ_LOG_ENTRY_LEFT | 1u);
    return entry;
}

/* messages: of copies of frames, one behind the other, as a broker sends them to who does not map its log. */
static PyObject *log_map_messages(struct shmq_log_map *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"frames", "keeper", NULL};
    Py_buffer view;
    PyObject *keeper = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*|O:messages", names, &view, &keeper)) {
        return NULL;
    }
    PyObject *list = PyList_New(0);
    struct shmq_log_entry *entry = NULL;
    if (list == NULL || view.len == 0 ||
        (entry = log_copied_entry(view.buf, (size_t)view.len)) == NULL) {
        PyBuffer_Release(&view);
        if (PyErr_Occurred()) {
            Py_CLEAR(list);
        }
        return list;
    }
    size_t size = (size_t)view.len;
    PyBuffer_Release(&view);
    for (size_t at = 0; at < size;) { /* bounded: each round takes a frame, which has a size, or ends it */
        const uint8_t *frame = entry->base + at;
        struct shmq_message_view found;
        if (size - at < SHMQ_MESSAGE_FIXED_SIZE_V1 ||
            shmq_message_check(frame, size - at, shmq_be64_load(frame + 28), 0, &found) != SHMQ_OK) {
            shmq_raise("CorruptMessageError", "read pulled messages: byte %zu of %zu begins no message", at, size);
            Py_CLEAR(list);
            break;
        }
        PyObject *message = shmq_message_received(self->module, self, entry, frame, found.total_size,
                                                  keeper == Py_None ? NULL : keeper);
        if (message == NULL || PyList_Append(list, message) < 0) {
            Py_XDECREF(message);
            Py_CLEAR(list);
            break;
        }
        Py_DECREF(message);
        at += found.total_size;
    }
    shmq_log_entry_unpin(entry);
    return list;
}

static PyObject *log_map_retire(struct shmq_log_map *self, PyObject *args)
{
    unsigned long long file_position;
    int fd;
    if (!PyArg_ParseTuple(args, "Ki:retire", &file_position, &fd) ||
        log_map_position(self, file_position, "retire a segment of the log") < 0) {
        return NULL;
    }
    int own = log_map_own_fd(fd);
    int status = -1;
    int error = 0;
    if (own < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = log_retire(self, file_position, own);
    error = errno;
    Py_END_ALLOW_THREADS
    if (status < 0) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *log_map_forget(struct shmq_log_map *self, PyObject *argument)
{
    unsigned long long file_position = PyLong_AsUnsignedLongLong(argument);
    if ((file_position == (unsigned long long)-1 && PyErr_Occurred()) ||
        log_map_position(self, file_position, "forget a file of the log") < 0) {
        return NULL;
    }
    return PyBool_FromLong(log_forget(self, file_position));
}

static PyObject *log_map_request_file(struct shmq_log_map *self, PyObject *args)
{
    unsigned long long file_position;
    double timeout = 1.0;
    if (!PyArg_ParseTuple(args, "K|d:request_file", &file_position, &timeout) ||
        log_map_position(self, file_position, "request a file of the log") < 0) {
        return NULL;
    }
    int status = shmq_log_map_request(self, file_position, shmq_timeout_ns(timeout));
    return status > 0 ? NULL : PyLong_FromLong(status);
}

struct log_row {
    uint64_t file_position;
    uint32_t pins;
    int is_hot;
};

/* A copy of the table, for whoever must not make Python objects under the lock. Returns rows, or NULL. */
static struct log_row *log_rows(struct shmq_log_map *self, Py_ssize_t *count)
{
    pthread_mutex_lock(&self->lock);
    size_t room = 1;
    for (uint32_t i = 0; i < SHMQ_LOG_BUCKETS; ++i) {
        for (const struct shmq_log_entry *entry = self->buckets[i]; entry != NULL; entry = entry->next) {
            room += 1;
        }
    }
    struct log_row *rows = PyMem_RawMalloc(room * sizeof *rows);
    *count = 0;
    for (uint32_t i = 0; rows != NULL && i < SHMQ_LOG_BUCKETS; ++i) {
        for (const struct shmq_log_entry *entry = self->buckets[i]; entry != NULL; entry = entry->next) {
            /* relaxed: for people */
            rows[(*count)++] = (struct log_row){entry->file_position, shmq_load_relaxed32(&entry->pins),
                                                entry->hot_fd >= 0};
        }
    }
    pthread_mutex_unlock(&self->lock);
    return rows;
}

static PyObject *log_map_files(struct shmq_log_map *self, PyObject *ignored)
{
    (void)ignored;
    if (log_map_check(self, "list the files of the log") < 0) {
        return NULL;
    }
    Py_ssize_t count;
    struct log_row *rows = log_rows(self, &count);
    if (rows == NULL) {
        return PyErr_NoMemory();
    }
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; ++i) {
        PyObject *row = Py_BuildValue("(KNI)", (unsigned long long)rows[i].file_position,
                                      PyBool_FromLong(rows[i].is_hot), rows[i].pins);
        if (row == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, i, row);
        }
    }
    PyMem_RawFree(rows);
    if (list != NULL && PyList_Sort(list) < 0) {
        Py_CLEAR(list);
    }
    return list;
}

static PyObject *log_map_get_remap_count(struct shmq_log_map *self, void *closure)
{
    (void)closure;
    pthread_mutex_lock(&self->lock);
    uint64_t count = self->remap_count;
    pthread_mutex_unlock(&self->lock);
    return PyLong_FromUnsignedLongLong(count);
}

static PyObject *log_map_get_refused_count(struct shmq_log_map *self, void *closure)
{
    (void)closure;
    pthread_mutex_lock(&self->lock);
    uint64_t count = self->refused_count;
    pthread_mutex_unlock(&self->lock);
    return PyLong_FromUnsignedLongLong(count);
}

static PyObject *log_map_get_channel_open(struct shmq_log_map *self, void *closure)
{
    (void)closure;
    /* acquire: pairs with the release at the end of log_thread */
    return PyBool_FromLong(self->thread_started && shmq_load_acquire32(&self->channel_open) != 0);
}

static PyObject *log_map_get_closed(struct shmq_log_map *self, void *closure)
{
    (void)closure;
    return PyBool_FromLong(self->closed);
}

static PyMethodDef log_map_methods[] = {
#define METHOD(name, function, flags, doc) {name, (PyCFunction)(void (*)(void))function, flags, doc}
    METHOD("start", log_map_start, METH_O,
           "start(channel_fd): serves the log channel in a C thread; keeps a duplicate of the fd."),
    METHOD("stop", log_map_stop, METH_NOARGS, "Ends the remap thread; what is mapped stays."),
    METHOD("close", log_map_close, METH_NOARGS,
           "Stops and unmaps; what a view still looks at is unmapped when the view goes."),
    METHOD("__enter__", log_map_enter, METH_NOARGS, "Gives itself."),
    METHOD("__exit__", log_map_close, METH_VARARGS, "Closes."),
    METHOD("add", log_map_add, METH_VARARGS | METH_KEYWORDS,
           "add(file_position, fd, *, hot=False): maps a file or a hot segment; the fd stays the caller's."),
    METHOD("messages", log_map_messages, METH_VARARGS | METH_KEYWORDS,
           "messages(frames, keeper=None) -> [Message]: of a copy of these bytes, frame behind frame, each checked."),
    METHOD("retire", log_map_retire, METH_VARARGS,
           "retire(file_position, fd): the complete file takes the segment's place under live views."),
    METHOD("forget", log_map_forget, METH_O,
           "forget(file_position) -> bool: out of the table; True if it is unmapped already."),
    METHOD("request_file", log_map_request_file, METH_VARARGS,
           "request_file(file_position, timeout=1.0) -> status: asks the broker for a file; waits."),
    METHOD("files", log_map_files, METH_NOARGS, "files() -> [(file_position, hot, pins)], in order."),
#undef METHOD
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef log_map_getset[] = {
    {"remap_count", (getter)(void (*)(void))log_map_get_remap_count, NULL, "segments replaced by files", NULL},
    {"refused_count", (getter)(void (*)(void))log_map_get_refused_count, NULL,
     "packets that could not be served and were not answered", NULL},
    {"channel_open", (getter)(void (*)(void))log_map_get_channel_open, NULL,
     "True while the remap thread serves a channel", NULL},
    {"closed", (getter)(void (*)(void))log_map_get_closed, NULL, "True once closed", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot log_map_slots[] = {
    {Py_tp_new, (void *)(uintptr_t)log_map_new},
    {Py_tp_dealloc, (void *)(uintptr_t)log_map_dealloc},
    {Py_tp_methods, log_map_methods},
    {Py_tp_getset, log_map_getset},
    {Py_tp_doc, "LogMap(*, file_size, cold_max=16): the CommitLog's files as this process maps them, read-only."},
    {0, NULL},
};

static PyType_Spec log_map_spec = {
    .name = "shmq.core._core.LogMap",
    .basicsize = sizeof(struct shmq_log_map),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = log_map_slots,
};

int shmq_add_log_map(PyObject *module)
{
    struct shmq_module *state = shmq_module_state(module);
    state->log_map_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &log_map_spec, NULL);
    return state->log_map_type == NULL ? -1 : PyModule_AddType(module, state->log_map_type);
}
