// c_echo PORT: what the machine allows. A WebSocket server on epoll that checks nothing: /chat/ sends every message to
// all its members (in the process, without Redis), every other path sends it back.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "accept_key.h"

struct buffer {
    uint8_t *bytes;
    size_t at, end, room;
};

struct connection {
    int fd;
    bool open, member, writable_wanted;
    struct buffer in, out;
    struct connection *next, *previous;  // in the chat
};

static struct connection chat = {.next = &chat, .previous = &chat};
static int epoll;

static void *append(struct buffer *b, const void *data, size_t size)
{
    if (b->end + size > b->room) {
        b->room = (b->end + size) * 2;
        b->bytes = realloc(b->bytes, b->room);
    }
    if (size) memcpy(b->bytes + b->end, data, size);
    b->end += size;
    return b->bytes + b->end - size;
}

static void watch(struct connection *c, int operation, bool writable)
{
    struct epoll_event event = {.events = writable ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = c};
    c->writable_wanted = writable;
    epoll_ctl(epoll, operation, c->fd, &event);
}

static void end(struct connection *c)
{
    close(c->fd);
    if (c->member) c->previous->next = c->next, c->next->previous = c->previous;
    free(c->in.bytes);
    free(c->out.bytes);
    free(c);
}

static bool flush(struct connection *c)
{
    struct buffer *b = &c->out;
    while (b->at < b->end) {
        ssize_t n = send(c->fd, b->bytes + b->at, b->end - b->at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN) return false;
        if (n < 0) {
            if (!c->writable_wanted) watch(c, EPOLL_CTL_MOD, true);
            return true;
        }
        b->at += n;
    }
    b->at = b->end = 0;
    if (c->writable_wanted) watch(c, EPOLL_CTL_MOD, false);
    return true;
}

static void send_frame(struct connection *c, uint8_t first, const uint8_t *data, size_t size)
{
    uint8_t header[10] = {first, size};
    int length = 2;
    if (size > 65535) {
        header[1] = 127;
        for (int shift = 56; shift >= 0; shift -= 8) header[length++] = (uint64_t)size >> shift;
    } else if (size > 125) {
        header[1] = 126;
        header[length++] = size >> 8;
        header[length++] = size;
    }
    append(&c->out, header, length);
    append(&c->out, data, size);
}

// These two return how many bytes they took: 0 as long as some are missing, -1 to end the connection.
static long read_request(struct connection *c, uint8_t *data, size_t size)
{
    uint8_t *stop = memmem(data, size, "\r\n\r\n", 4);
    if (!stop) return 0;
    *stop = 0;
    const char *key = strcasestr((char *)data, "sec-websocket-key:");
    if (!key) return -1;
    key += strlen("sec-websocket-key:");
    key += strspn(key, " ");
    if (strlen(key) < 24) return -1;
    char accept[29], response[256];
    accept_key(key, accept);
    int length = snprintf(response, sizeof response,
                          "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
    append(&c->out, response, length);
    c->open = true;
    if (!strncmp((char *)data, "GET /chat/ ", 11)) {
        c->member = true;
        c->next = chat.next, c->previous = &chat;
        chat.next->previous = c, chat.next = c;
    }
    return stop + 4 - data;
}

static long read_frame(struct connection *c, uint8_t *data, size_t size)
{
    if (size < 2) return 0;
    uint64_t length = data[1] & 127;
    size_t header = length == 127 ? 14 : length == 126 ? 8 : 6;
    if (!(data[1] & 0x80)) return -1;
    if (size < header) return 0;
    if (length == 126) {
        length = data[2] << 8 | data[3];
    } else if (length == 127) {
        length = 0;
        for (int i = 2; i < 10; i++) length = length << 8 | data[i];
    }
    if (size - header < length) return 0;
    uint8_t *payload = data + header, mask[4];
    memcpy(mask, payload - 4, 4);
    for (size_t i = 0; i < length; i++) payload[i] ^= mask[i & 3];
    uint8_t opcode = data[0] & 15;
    if (opcode == 8) {
        send_frame(c, 0x88, payload, length < 2 ? 0 : 2);
        flush(c);
        return -1;
    }
    if (opcode == 9) {
        send_frame(c, 0x8a, payload, length);
    } else if (opcode != 10 && c->member) {
        for (struct connection *m = chat.next; m != &chat; m = m->next) {
            send_frame(m, data[0], payload, length);
            if (m != c) flush(m);  // one that is gone is noticed when it is read
        }
    } else if (opcode != 10) {
        send_frame(c, data[0], payload, length);
    }
    return header + length;
}

static bool readable(struct connection *c)
{
    static uint8_t received[1 << 18];
    ssize_t size = recv(c->fd, received, sizeof received, MSG_DONTWAIT);
    if (size < 0 && errno == EAGAIN) return true;
    if (size <= 0) return false;
    uint8_t *data = received;
    size_t left = size;
    if (c->in.end) {  // what came before was not complete
        append(&c->in, received, size);
        data = c->in.bytes, left = c->in.end;
    }
    long used;
    do {
        used = c->open ? read_frame(c, data, left) : read_request(c, data, left);
        if (used < 0) return false;
        data += used, left -= used;
    } while (used && left);
    if (data >= received && data <= received + sizeof received) {
        append(&c->in, data, left);
    } else {
        memmove(c->in.bytes, data, left);
        c->in.end = left;
    }
    return flush(c);
}

static void accept_all(int listener)
{
    int fd, yes = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        watch(c, EPOLL_CTL_ADD, false);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fputs("c_echo PORT\n", stderr);
        return 2;
    }
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("c_echo");
        return 1;
    }
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[512];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(epoll, events, 512, -1);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) {
                accept_all(listener);
            } else if ((events[i].events & EPOLLOUT && !flush(c)) ||
                       (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && !readable(c))) {
                end(c);
            }
        }
    }
}
