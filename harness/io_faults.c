// Makes one call for files below some folders fail, if preloaded into the program.
//
// IO_FAULT=AT:ERRNO:LOG:FOLDER[:FOLDER...] lets the AT-th call fail with ERRNO. The calls up to that
// one are written to the file LOG, a line each; with AT 0 all are, and none fails.

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MAX_DESCRIPTORS = 4096 };

static atomic_int n_calls;
static atomic_char followed[MAX_DESCRIPTORS];  // descriptors of files below the folders

static int is_below(const char *path, const char *folders) {
    while (path && folders) {
        const char *end = strchrnul(folders, ':');
        size_t length = (size_t)(end - folders);
        if (length && !strncmp(path, folders, length)) return 1;
        folders = *end ? end + 1 : NULL;
    }
    return 0;
}

static int is_followed(int descriptor) {
    return descriptor >= 0 && descriptor < MAX_DESCRIPTORS && followed[descriptor];
}

// Counts a call; returns nonzero, with errno set, if it is the one to fail.
static int fails(const char *name, const char *path, int descriptor) {
    const char *fault = getenv("IO_FAULT");
    if (!fault) return 0;
    int at, number, length;
    char log[512];
    if (sscanf(fault, "%d:%d:%511[^:]:%n", &at, &number, log, &length) < 3) return 0;
    if (path ? !is_below(path, fault + length) : !is_followed(descriptor)) return 0;
    int count = atomic_fetch_add(&n_calls, 1) + 1;
    if (at && count > at) return 0;
    char line[600];
    int n = snprintf(line, sizeof line, "%s %.500s\n", name, path ? path : "");
    long out = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (out >= 0) {
        syscall(SYS_write, out, line, (size_t)n);
        syscall(SYS_close, out);
    }
    if (count != at) return 0;
    errno = number;
    return 1;
}

static int follow(int descriptor, const char *path) {
    const char *fault = getenv("IO_FAULT");
    if (fault && descriptor >= 0 && descriptor < MAX_DESCRIPTORS) {
        const char *folders = fault;
        for (int i = 0; i < 3 && folders; i++) folders = (folders = strchr(folders, ':')) ? folders + 1 : NULL;
        followed[descriptor] = (char)is_below(path, folders);
    }
    return descriptor;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                   \
    int name(const char *path, int flags, ...) {                     \
        va_list rest;                                                \
        va_start(rest, flags);                                       \
        mode_t mode = va_arg(rest, mode_t);                          \
        va_end(rest);                                                \
        if (fails("open", path, -1)) return -1;                      \
        return follow(REAL(name)(path, flags, mode), path);          \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                 \
    int name(int folder, const char *path, int flags, ...) {         \
        va_list rest;                                                \
        va_start(rest, flags);                                       \
        mode_t mode = va_arg(rest, mode_t);                          \
        va_end(rest);                                                \
        if (fails("open", path, -1)) return -1;                      \
        return follow(REAL(name)(folder, path, flags, mode), path);  \
    }
OPENAT(openat)
OPENAT(openat64)

#define CALL(result, failed, name, parameters, arguments, path, descriptor) \
    result name parameters {                                                \
        if (fails(#name, path, descriptor)) return failed;                  \
        return REAL(name) arguments;                                        \
    }
CALL(ssize_t, -1, read, (int d, void *b, size_t n), (d, b, n), NULL, d)
CALL(ssize_t, -1, pread, (int d, void *b, size_t n, off_t o), (d, b, n, o), NULL, d)
CALL(ssize_t, -1, pread64, (int d, void *b, size_t n, off64_t o), (d, b, n, o), NULL, d)
CALL(ssize_t, -1, write, (int d, const void *b, size_t n), (d, b, n), NULL, d)
CALL(ssize_t, -1, pwrite, (int d, const void *b, size_t n, off_t o), (d, b, n, o), NULL, d)
CALL(ssize_t, -1, pwrite64, (int d, const void *b, size_t n, off64_t o), (d, b, n, o), NULL, d)
CALL(ssize_t, -1, writev, (int d, const struct iovec *v, int n), (d, v, n), NULL, d)
CALL(int, -1, fsync, (int d), (d), NULL, d)
CALL(int, -1, fdatasync, (int d), (d), NULL, d)
CALL(int, -1, ftruncate, (int d, off_t n), (d, n), NULL, d)
CALL(int, -1, ftruncate64, (int d, off64_t n), (d, n), NULL, d)
CALL(int, -1, fchmod, (int d, mode_t m), (d, m), NULL, d)
CALL(int, -1, flock, (int d, int o), (d, o), NULL, d)
CALL(int, -1, chmod, (const char *p, mode_t m), (p, m), p, -1)
CALL(int, -1, mkdir, (const char *p, mode_t m), (p, m), p, -1)
CALL(int, -1, rmdir, (const char *p), (p), p, -1)
CALL(int, -1, unlink, (const char *p), (p), p, -1)
CALL(int, -1, unlinkat, (int f, const char *p, int o), (f, p, o), p, -1)
CALL(int, -1, rename, (const char *p, const char *q), (p, q), p, -1)
CALL(int, -1, link, (const char *p, const char *q), (p, q), p, -1)
CALL(int, -1, linkat, (int f, const char *p, int g, const char *q, int o), (f, p, g, q, o), p, -1)
CALL(int, -1, truncate, (const char *p, off_t n), (p, n), p, -1)
CALL(DIR *, NULL, opendir, (const char *p), (p), p, -1)
CALL(void *, MAP_FAILED, mmap, (void *a, size_t n, int p, int f, int d, off_t o), (a, n, p, f, d, o), NULL, d)
CALL(void *, MAP_FAILED, mmap64, (void *a, size_t n, int p, int f, int d, off64_t o), (a, n, p, f, d, o), NULL, d)

int close(int descriptor) {
    if (descriptor >= 0 && descriptor < MAX_DESCRIPTORS) followed[descriptor] = 0;
    return REAL(close)(descriptor);
}
