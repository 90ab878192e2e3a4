/* Mishaps of the operating system for a process that has this library in LD_PRELOAD.

   A test writes them to the file that MISHAPS names. The file begins with struct mishaps: the seconds by which the time
   of day is off, and the errors of accept and socket. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile struct mishaps {
    int64_t seconds;
    int64_t accept;
    int64_t socket;
} *mishaps;

static int (*original_clock_gettime)(clockid_t, struct timespec *);
static int (*original_accept4)(int, struct sockaddr *, socklen_t *, int);
static int (*original_socket)(int, int, int);

__attribute__((constructor)) static void begin(void) {
    static struct mishaps none;
    const char *path = getenv("MISHAPS");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *shared = file < 0 ? MAP_FAILED : mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, file, 0);
    if (file >= 0)
        close(file);
    original_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    original_accept4 = dlsym(RTLD_NEXT, "accept4");
    original_socket = dlsym(RTLD_NEXT, "socket");
    mishaps = shared == MAP_FAILED ? &none : shared;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!original_clock_gettime)
        begin();
    int failed = original_clock_gettime(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += mishaps->seconds;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact))
        return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where)
        *where = now.tv_sec;
    return now.tv_sec;
}

int accept4(int listening, struct sockaddr *address, socklen_t *size, int flags) {
    if (mishaps->accept) {
        errno = (int)mishaps->accept;
        return -1;
    }
    return original_accept4(listening, address, size, flags);
}

int socket(int family, int type, int protocol) {
    if (mishaps->socket) {
        errno = (int)mishaps->socket;
        return -1;
    }
    return original_socket(family, type, protocol);
}
