/* recorder.c: LD_PRELOAD library that writes down what a process does to the files of one folder, so that a test
 * can make every state of the disk that a power cut might have left (recorded_disk.py).
 *
 * SHMQ_RECORD_FOLDER is the folder, SHMQ_RECORD_FILE where the record goes: one entry per call, appended by one
 * writev, so that it outlives a SIGKILL. An entry is a `head`, then a path, then a second path or the bytes written.
 * A change and its entry are one step under a lock: entries stand in the order in which things happened. A sync
 * makes two entries, one before the call and one after it succeeded: durable is what stands before the first.
 * Calls that nobody in the store makes (mmap for writing, writev, copy_file_range) are not recorded. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    MAKE = 1,     /* path: a file, or a folder (argument 1) */
    WRITE = 2,    /* bytes at `place` */
    RESIZE = 3,   /* to `place` bytes */
    RENAME = 4,   /* path, second path */
    LINK = 5,     /* path, second path */
    REMOVE = 6,   /* path */
    BEGIN = 7,    /* of a sync of `inode`, numbered `place` */
    END = 8,      /* of that sync */
};

struct head {
    uint32_t kind;
    uint32_t path_size;
    uint64_t data_size; /* of the second path, or of the bytes */
    uint64_t inode;
    uint64_t place;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char folder[4096];
static size_t folder_size;
static int record_fd = -1;
static uint64_t sync_count;

__attribute__((constructor)) static void start(void)
{
    const char *name = getenv("SHMQ_RECORD_FILE");
    const char *where = getenv("SHMQ_RECORD_FOLDER");
    if (name == NULL || where == NULL || strlen(where) >= sizeof folder) {
        return;
    }
    strcpy(folder, where);
    folder_size = strlen(folder);
    record_fd = (int)syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (record_fd < 0) {
        abort();
    }
}

#define REAL(name) ((__typeof__(&name))real_function(#name))

static void *real_function(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (found == NULL) {
        abort();
    }
    return found;
}

static int is_inside(const char *path)
{
    return record_fd >= 0 && strncmp(path, folder, folder_size) == 0 &&
           (path[folder_size] == '/' || path[folder_size] == 0);
}

/* The path of an open file in the folder; 0 if it is elsewhere. */
static int path_of(int fd, char *path, size_t room)
{
    char link[64];
    if (record_fd < 0) {
        return 0;
    }
    (void)snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, room - 1);
    path[size < 0 ? 0 : size] = 0;
    return size > 0 && is_inside(path);
}

static uint64_t inode_of(int fd)
{
    struct stat status;
    return fstat(fd, &status) == 0 ? status.st_ino : 0;
}

static uint64_t inode_at(const char *path)
{
    struct stat status;
    return lstat(path, &status) == 0 ? status.st_ino : 0;
}

static void note(struct head head, const char *path, const void *data, size_t data_size)
{
    head.path_size = (uint32_t)strlen(path);
    head.data_size = data_size;
    struct iovec parts[3] = {{&head, sizeof head},
                             {(void *)(uintptr_t)path, head.path_size},
                             {(void *)(uintptr_t)data, data_size}};
    size_t wanted = sizeof head + head.path_size + data_size;
    if (syscall(SYS_writev, record_fd, parts, 3) != (long)wanted) {
        abort();
    }
}

/* ---- files ------------------------------------------------------------------------------------------- */

static int opened(int at, const char *path, int flags, mode_t mode)
{
    static int (*real)(int, const char *, int, ...);
    if (real == NULL) {
        real = REAL(openat);
    }
    if (!is_inside(path) || (flags & (O_CREAT | O_TRUNC)) == 0) {
        return real(at, path, flags, mode);
    }
    (void)pthread_mutex_lock(&lock);
    uint64_t before = inode_at(path);
    int fd = real(at, path, flags, mode);
    int error = errno;
    if (fd >= 0 && before == 0) {
        note((struct head){.kind = MAKE, .inode = inode_of(fd)}, path, NULL, 0);
    } else if (fd >= 0 && (flags & O_TRUNC) != 0) {
        note((struct head){.kind = RESIZE, .inode = before}, path, NULL, 0);
    }
    (void)pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}

#define OPENED(at, path, flags)                                                                                        \
    va_list rest;                                                                                                      \
    va_start(rest, flags);                                                                                             \
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(rest, mode_t) : 0;                                     \
    va_end(rest);                                                                                                      \
    return opened(at, path, flags, mode)

int open(const char *path, int flags, ...)
{
    OPENED(AT_FDCWD, path, flags);
}

int open64(const char *path, int flags, ...)
{
    OPENED(AT_FDCWD, path, flags);
}

int openat(int at, const char *path, int flags, ...)
{
    OPENED(at, path, flags);
}

int openat64(int at, const char *path, int flags, ...)
{
    OPENED(at, path, flags);
}

static ssize_t written(int fd, const void *data, size_t size, off_t place, int is_placed)
{
    char path[4096];
    int is_ours = path_of(fd, path, sizeof path);
    if (is_ours) {
        (void)pthread_mutex_lock(&lock);
    }
    if (!is_placed && is_ours) {
        place = lseek(fd, 0, SEEK_CUR);
    }
    long count = is_placed ? syscall(SYS_pwrite64, fd, data, size, place) : syscall(SYS_write, fd, data, size);
    int error = errno;
    if (is_ours) {
        if (count > 0) {
            note((struct head){.kind = WRITE, .inode = inode_of(fd), .place = (uint64_t)place}, path, data,
                 (size_t)count);
        }
        (void)pthread_mutex_unlock(&lock);
    }
    errno = error;
    return count;
}

ssize_t write(int fd, const void *data, size_t size)
{
    return written(fd, data, size, 0, 0);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t place)
{
    return written(fd, data, size, place, 1);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place)
{
    return written(fd, data, size, place, 1);
}

/* A call that may have changed the size of a file: it is what it is now. */
static int resized(int fd, int result)
{
    char path[4096];
    struct stat status;
    int error = errno;
    if (path_of(fd, path, sizeof path) && fstat(fd, &status) == 0) {
        note((struct head){.kind = RESIZE, .inode = status.st_ino, .place = (uint64_t)status.st_size}, path, NULL, 0);
    }
    (void)pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

int ftruncate(int fd, off_t size)
{
    (void)pthread_mutex_lock(&lock);
    return resized(fd, (int)syscall(SYS_ftruncate, fd, size));
}

int ftruncate64(int fd, off64_t size)
{
    return ftruncate(fd, size);
}

int posix_fallocate(int fd, off_t place, off_t size)
{
    int (*real)(int, off_t, off_t) = REAL(posix_fallocate);
    (void)pthread_mutex_lock(&lock);
    return resized(fd, real(fd, place, size));
}

int posix_fallocate64(int fd, off64_t place, off64_t size)
{
    return posix_fallocate(fd, place, size);
}

/* ---- names ------------------------------------------------------------------------------------------- */

/* Both names are absolute: the store uses no other. */
static int named(enum kind kind, const char *path, const char *other, int (*call)(const char *, const char *))
{
    if (!is_inside(path)) {
        return call(path, other);
    }
    (void)pthread_mutex_lock(&lock);
    uint64_t inode = inode_at(path);
    int result = call(path, other);
    int error = errno;
    if (result == 0) {
        struct head head = {.kind = kind, .inode = inode};
        note(head, path, other, other == NULL ? 0 : strlen(other));
    }
    (void)pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

static int call_rename(const char *path, const char *other)
{
    return (int)syscall(SYS_renameat2, AT_FDCWD, path, AT_FDCWD, other, 0);
}

int rename(const char *path, const char *other)
{
    return named(RENAME, path, other, call_rename);
}

static int call_link(const char *path, const char *other)
{
    return (int)syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, other, 0);
}

int link(const char *path, const char *other)
{
    return named(LINK, path, other, call_link);
}

int linkat(int at, const char *path, int other_at, const char *other, int flags)
{
    (void)at, (void)other_at, (void)flags;
    return named(LINK, path, other, call_link);
}

static int call_unlink(const char *path, const char *other)
{
    (void)other;
    return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int unlink(const char *path)
{
    return named(REMOVE, path, NULL, call_unlink);
}

int mkdir(const char *path, mode_t mode)
{
    (void)pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    int error = errno;
    if (result == 0 && is_inside(path)) {
        note((struct head){.kind = MAKE, .inode = inode_at(path), .place = 1}, path, NULL, 0);
    }
    (void)pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

/* ---- syncs ------------------------------------------------------------------------------------------- */

static int synced(int fd, long number)
{
    char path[4096];
    if (!path_of(fd, path, sizeof path)) {
        return (int)syscall(number, fd);
    }
    (void)pthread_mutex_lock(&lock);
    struct head head = {.kind = BEGIN, .inode = inode_of(fd), .place = ++sync_count};
    note(head, path, NULL, 0);
    (void)pthread_mutex_unlock(&lock);
    int result = (int)syscall(number, fd);
    int error = errno;
    if (result == 0) {
        head.kind = END;
        (void)pthread_mutex_lock(&lock);
        note(head, path, NULL, 0);
        (void)pthread_mutex_unlock(&lock);
    }
    errno = error;
    return result;
}

int fsync(int fd)
{
    return synced(fd, SYS_fsync);
}

int fdatasync(int fd)
{
    return synced(fd, SYS_fdatasync);
}
