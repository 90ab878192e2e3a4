#define _GNU_SOURCE
#include "wsclient.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef USE_ZLIB
#include <zlib.h>
#endif

#include "accept_key.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif
#define OPENING_AT_ONCE 64
#define MAX_RESPONSE 32768

enum { TEXT = 1, CLOSE = 8, PING = 9, PONG = 10, RSV1 = 0x40, FIN = 0x80 };

struct client_options client_options = {.host = "127.0.0.1", .path = "/", .port = 8000, .sources = 8, .timeout = 20};
struct client *clients;
int open_count;
struct faults faults;
uint64_t pings, arrival;
uint8_t *payload;
size_t payload_size, own_size;

static int epoll, opening_count, dead_count;
static uint8_t received[1 << 18];

uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

uint64_t random_bits(void)  // xorshift: for masks and keys, which need not be secret here
{
    static uint64_t state;
    if (!state) state = now() | 1;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

void fault(uint64_t *counter, const char *format, ...)
{
    if (!faults.first[0]) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(faults.first, sizeof faults.first, format, arguments);
        va_end(arguments);
        for (char *p = faults.first; *p; p++)  // it goes into a JSON string
            if (*p == '"' || *p == '\\' || *p < 32 || *p > 126) *p = ' ';
    }
    ++*counter;
}

/* ---------- sending ---------- */

static void watch(struct client *c, int operation, bool writable)
{
    struct epoll_event event = {.events = writable ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = c};
    c->writable_wanted = writable;
    epoll_ctl(epoll, operation, c->fd, &event);
}

void client_kill(struct client *c)
{
    if (c->state == DEAD || c->state == UNUSED) return;
    if (c->state == OPEN) open_count--;
    if (c->state == CONNECTING || c->state == HANDSHAKE) opening_count--;
    close(c->fd);
    c->fd = -1;
    c->state = DEAD;
    c->outbox_at = c->outbox_end = 0;
    dead_count++;
}

void client_flush(struct client *c)
{
    if (c->fd < 0) return;
    while (c->outbox_at < c->outbox_end) {
        ssize_t n = send(c->fd, c->outbox + c->outbox_at, c->outbox_end - c->outbox_at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) {
            c->outbox_at += n;
        } else if (errno == EAGAIN) {
            if (!c->writable_wanted) watch(c, EPOLL_CTL_MOD, true);
            return;
        } else if (errno != EINTR) {
            if (c->state != CLOSING) fault(&faults.closed, "send: %s", strerror(errno));
            client_kill(c);
            return;
        }
    }
    c->outbox_at = c->outbox_end = 0;
    if (c->writable_wanted) watch(c, EPOLL_CTL_MOD, false);
}

// Room for `size` more bytes at the end of the outbox.
static uint8_t *outbox_reserve(struct client *c, size_t size)
{
    if (c->outbox_end + size > c->outbox_room && c->outbox_at) {
        memmove(c->outbox, c->outbox + c->outbox_at, c->outbox_end - c->outbox_at);
        c->outbox_end -= c->outbox_at;
        c->outbox_at = 0;
    }
    if (c->outbox_end + size > c->outbox_room) {
        c->outbox_room = (c->outbox_end + size) * 2;
        c->outbox = realloc(c->outbox, c->outbox_room);
    }
    return c->outbox + c->outbox_end;
}

static void outbox_add(struct client *c, const void *data, size_t size)
{
    memcpy(outbox_reserve(c, size), data, size);
    c->outbox_end += size;
}

#ifdef USE_ZLIB
// Raw deflate without context takeover, its empty last block cut off (RFC 7692, section 7.2.1).
static const uint8_t *deflated(const uint8_t *data, size_t *size)
{
    static z_stream stream;
    static uint8_t *out;
    static size_t room;
    size_t bound = *size + *size / 2 + 1024;
    if (!out) deflateInit2(&stream, 1, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY);
    if (bound > room) out = realloc(out, room = bound);
    deflateReset(&stream);
    stream.next_in = (uint8_t *)data, stream.avail_in = *size;
    stream.next_out = out, stream.avail_out = room;
    deflate(&stream, Z_SYNC_FLUSH);
    *size = room - stream.avail_out - 4;
    return out;
}
#endif

static void mask_into(uint8_t *out, const uint8_t *data, size_t size, uint32_t mask)
{
    uint64_t wide = (uint64_t)mask << 32 | mask, word;
    size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        memcpy(&word, data + i, 8);
        word ^= wide;
        memcpy(out + i, &word, 8);
    }
    for (; i < size; i++) out[i] = data[i] ^ ((uint8_t *)&mask)[i & 3];
}

void client_queue(struct client *c, uint8_t opcode, const uint8_t *data, size_t size)
{
    if (client_options.raw) {
        outbox_add(c, data, size);
        return;
    }
    uint8_t first = FIN | opcode;
#ifdef USE_ZLIB
    if (c->deflated && opcode < CLOSE) {
        data = deflated(data, &size);
        first |= RSV1;
    }
#endif
    uint8_t *out = outbox_reserve(c, size + 14);
    int at = 0;
    out[at++] = first;
    if (size < 126) {
        out[at++] = 0x80 | size;
    } else if (size < 65536) {
        out[at++] = 0x80 | 126;
        out[at++] = size >> 8;
        out[at++] = size;
    } else {
        out[at++] = 0x80 | 127;
        for (int shift = 56; shift >= 0; shift -= 8) out[at++] = (uint64_t)size >> shift;
    }
    uint32_t mask = random_bits();
    memcpy(out + at, &mask, 4);
    mask_into(out + at + 4, data, size, mask);
    c->outbox_end += at + 4 + size;
}

void client_close(struct client *c)
{
    static const uint8_t normal[2] = {1000 >> 8, 1000 & 255};
    if (c->state != OPEN) return;
    if (client_options.raw) {
        client_kill(c);
        return;
    }
    open_count--;
    c->state = CLOSING;
    client_queue(c, CLOSE, normal, 2);
    client_flush(c);
}

/* ---------- the handshake ---------- */

static void bind_source(struct client *c)
{
    static uint32_t turn;
    int yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + turn++ % client_options.sources);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
    if (bind(c->fd, (struct sockaddr *)&address, sizeof address) < 0) fault(&faults.connect, "bind: %s", strerror(errno));
}

void client_connect(struct client *c)
{
    struct client kept = *c;
    memset(c, 0, sizeof *c);
    c->id = kept.id;
    c->outbox = kept.outbox, c->outbox_room = kept.outbox_room;
    c->packed = kept.packed, c->packed_room = kept.packed_room;
    c->response = kept.response;
    c->inflater = kept.inflater;
    c->path = kept.path;
#ifdef USE_ZLIB
    if (c->inflater) inflateReset(c->inflater);
#endif
    c->connect_time = now();
    c->state = CONNECTING;
    opening_count++;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        fault(&faults.connect, "socket: %s", strerror(errno));
        client_kill(c);
        return;
    }
    int yes = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (client_options.sources > 0) bind_source(c);
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(client_options.port)};
    inet_pton(AF_INET, client_options.host, &server.sin_addr);
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) {
        fault(&faults.connect, "connect: %s", strerror(errno));
        client_kill(c);
        return;
    }
    watch(c, EPOLL_CTL_ADD, true);
}

static void become_open(struct client *c)
{
    c->state = OPEN;
    opening_count--;
    open_count++;
    c->open_time = now();
    on_open(c);
}

static void send_request(struct client *c)
{
    const struct client_options *o = &client_options;
    uint64_t nonce[2] = {random_bits(), random_bits()};
    char key[25], origin[512] = "", request[12288];
    base64((uint8_t *)nonce, 16, key);
    accept_key(key, c->accept);
    if (!o->origin) snprintf(origin, sizeof origin, "Origin: http://%s:%d\r\n", o->host, o->port);
    else if (*o->origin) snprintf(origin, sizeof origin, "Origin: %s\r\n", o->origin);
    const char *extension = "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover\r\n";
    int size = snprintf(request, sizeof request,
                        "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n%s%s%s\r\n",
                        c->path ? c->path : o->path, o->host, o->port, key, origin, o->deflate ? extension : "", o->headers);
    if (size >= (int)sizeof request) {
        fault(&faults.connect, "the request is longer than %zu bytes", sizeof request);
        client_kill(c);
        return;
    }
    c->state = HANDSHAKE;
    outbox_add(c, request, size);
    client_flush(c);
}

static void connected(struct client *c)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        fault(&faults.connect, "connect: %s", strerror(error));
        client_kill(c);
    } else if (client_options.raw) {
        become_open(c);
        client_flush(c);
    } else {
        send_request(c);
    }
}

static const char *response_header(const char *response, const char *name)
{
    const char *value = strcasestr(response, name);
    if (!value) return NULL;
    value += strlen(name);
    return value + strspn(value, " ");
}

// The text of what is wrong with the server's answer, or NULL.
static const char *check_response(struct client *c)
{
    if (strncmp(c->response, "HTTP/1.1 101", 12)) {
        c->response[strcspn(c->response, "\r")] = 0;
        return c->response;
    }
    const char *accept = response_header(c->response, "\nsec-websocket-accept:");
    if (!accept || strncmp(accept, c->accept, 28)) return "wrong Sec-WebSocket-Accept";
    const char *extensions = response_header(c->response, "\nsec-websocket-extensions:");
    if (!extensions) return NULL;
    if (!client_options.deflate) return "an extension that was not offered";
    c->deflated = strcasestr(extensions, "permessage-deflate");
    c->server_resets = strcasestr(extensions, "server_no_context_takeover");
    return NULL;
}

// Returns how many of the bytes belong to the response.
static size_t read_response(struct client *c, const uint8_t *data, size_t size)
{
    c->response = realloc(c->response, c->response_size + size + 1);
    memcpy(c->response + c->response_size, data, size);
    size_t before = c->response_size;
    c->response_size += size;
    c->response[c->response_size] = 0;
    char *end = strstr(c->response, "\r\n\r\n");
    if (!end) {
        if (c->response_size > MAX_RESPONSE) {
            fault(&faults.connect, "handshake: no end in %d bytes", MAX_RESPONSE);
            client_kill(c);
        }
        return size;
    }
    *end = 0;
    const char *wrong = check_response(c);
    if (wrong) {
        fault(&faults.connect, "handshake: %.80s", wrong);
        client_kill(c);
    } else {
        become_open(c);
    }
    size_t used = end + 4 - c->response - before;
    free(c->response);
    c->response = NULL;
    return used;
}

/* ---------- reading frames ---------- */

static bool protocol_fault(struct client *c, const char *text)
{
    fault(&faults.protocol, "%s", text);
    client_kill(c);
    return false;
}

// Bytes of a message, uncompressed, as they come.
static void read_message(struct client *c, const uint8_t *data, size_t size)
{
    if (c->message_size < PREFIX_SIZE) {
        size_t room = PREFIX_SIZE - c->message_size;
        memcpy(c->prefix + c->message_size, data, size < room ? size : room);
    }
    size_t skipped = c->message_size < own_size ? own_size - c->message_size : 0;
    if (size > skipped && c->message_size + size <= payload_size &&
        memcmp(data + skipped, payload + c->message_size + skipped, size - skipped))
        c->damaged = true;
    c->message_size += size;
}

#ifdef USE_ZLIB
static bool inflate_message(struct client *c)
{
    static uint8_t out[65536];
    z_stream *stream = c->inflater;
    if (!stream) {
        stream = c->inflater = calloc(1, sizeof *stream);
        inflateInit2(stream, -15);
    } else if (c->server_resets) {
        inflateReset(stream);
    }
    memcpy(c->packed + c->packed_size, "\0\0\xff\xff", 4);
    stream->next_in = c->packed, stream->avail_in = c->packed_size + 4;
    do {
        stream->next_out = out, stream->avail_out = sizeof out;
        int result = inflate(stream, Z_SYNC_FLUSH);
        if (result < 0 && result != Z_BUF_ERROR) return protocol_fault(c, "the message cannot be inflated");
        read_message(c, out, sizeof out - stream->avail_out);
    } while (stream->avail_in || !stream->avail_out);
    return true;
}
#else
static bool inflate_message(struct client *c) { return protocol_fault(c, "built without zlib"); }
#endif

// The header is complete. This and those below return false when the client is dead.
static bool start_frame(struct client *c)
{
    const uint8_t *h = c->header;
    c->frame_left = h[1] & 127;
    c->fin = h[0] & FIN;
    c->opcode = h[0] & 15;
    uint8_t rsv = h[0] & 0x70;
    c->header_size = 0;
    if (h[1] & 0x80) return protocol_fault(c, "a masked frame from the server");
    if (c->frame_left == 126) {
        c->frame_left = h[2] << 8 | h[3];
    } else if (c->frame_left == 127) {
        c->frame_left = 0;
        for (int i = 2; i < 10; i++) c->frame_left = c->frame_left << 8 | h[i];
    }
    if (c->opcode >= CLOSE) {
        c->control_size = 0;
        if (c->frame_left > sizeof c->control || !c->fin) return protocol_fault(c, "a long or fragmented control frame");
        if (c->opcode > PONG || rsv) return protocol_fault(c, "a control frame with unknown opcode or RSV bits");
        return true;
    }
    if (c->opcode > 2) return protocol_fault(c, "an unknown opcode");
    if (c->opcode && c->in_message) return protocol_fault(c, "a new message within a message");
    if (!c->opcode && !c->in_message) return protocol_fault(c, "a continuation without a message");
    if (rsv & ~(c->deflated && c->opcode ? RSV1 : 0)) return protocol_fault(c, "RSV bits");
    if (c->opcode) {
        c->in_message = true;
        c->message_opcode = c->opcode;
        c->compressed = rsv;
        c->damaged = false;
        c->message_size = c->packed_size = 0;
    }
    return true;
}

static bool closed_by_server(struct client *c)
{
    c->close_received = true;
    if (c->state == OPEN) {
        int code = c->control_size >= 2 ? c->control[0] << 8 | c->control[1] : 1005;
        int reason_size = c->control_size > 2 ? c->control_size - 2 : 0;
        fault(&faults.closed, "the server closed: %d %.*s", code, reason_size, c->control + 2);
        client_queue(c, CLOSE, c->control, c->control_size >= 2 ? 2 : 0);
        client_flush(c);
    }
    client_kill(c);
    return false;
}

static bool end_frame(struct client *c)
{
    if (c->opcode == PING) {
        pings++;
        client_queue(c, PONG, c->control, c->control_size);
    } else if (c->opcode == CLOSE) {
        return closed_by_server(c);
    } else if (c->opcode < CLOSE && c->fin) {
        if (c->compressed && !inflate_message(c)) return false;
        c->in_message = false;
        on_message(c);
    }
    return c->fd >= 0;
}

static void read_payload(struct client *c, const uint8_t *data, size_t size)
{
    if (c->opcode >= CLOSE) {
        memcpy(c->control + c->control_size, data, size);
        c->control_size += size;
    } else if (c->compressed) {
        if (c->packed_size + size + 4 > c->packed_room) {
            c->packed_room = (c->packed_size + size + 4) * 2;
            c->packed = realloc(c->packed, c->packed_room);
        }
        memcpy(c->packed + c->packed_size, data, size);
        c->packed_size += size;
    } else {
        read_message(c, data, size);
    }
    c->frame_left -= size;
}

static bool read_frames(struct client *c, const uint8_t *data, size_t size)
{
    while (size) {
        if (c->frame_left) {
            size_t part = size < c->frame_left ? size : c->frame_left;
            read_payload(c, data, part);
            data += part, size -= part;
        } else {
            c->header[c->header_size++] = *data++, size--;
            if (c->header_size < 2) continue;
            int length = c->header[1] & 127;
            if (c->header_size < (length == 127 ? 10 : length == 126 ? 4 : 2)) continue;
            if (!start_frame(c)) return false;
        }
        if (!c->frame_left && !end_frame(c)) return false;
    }
    return true;
}

static bool read_raw(struct client *c, const uint8_t *data, size_t size)
{
    while (size) {
        size_t part = payload_size - c->message_size;
        if (part > size) part = size;
        read_message(c, data, part);
        data += part, size -= part;
        if (c->message_size == payload_size) {
            c->message_opcode = 0;
            on_message(c);
            c->message_size = 0;
            c->damaged = false;
        }
    }
    return c->fd >= 0;
}

static void readable(struct client *c)
{
    ssize_t size = recv(c->fd, received, sizeof received, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (size <= 0) {
        if (c->state == HANDSHAKE) fault(&faults.connect, "handshake: the connection ended");
        else if (c->state == OPEN) fault(&faults.closed, "the connection ended: %s", size ? strerror(errno) : "EOF");
        client_kill(c);
        return;
    }
    arrival = now();
    const uint8_t *data = received;
    if (c->state == HANDSHAKE) {
        size_t used = read_response(c, data, size);
        data += used, size -= used;
    }
    if (c->state != OPEN && c->state != CLOSING) return;
    if (client_options.raw ? read_raw(c, data, size) : read_frames(c, data, size)) client_flush(c);
}

/* ---------- all of them ---------- */

void clients_poll(int milliseconds) { clients_poll_for(milliseconds * (SECOND / 1000)); }

void clients_poll_for(uint64_t nanoseconds)
{
    static struct epoll_event events[512];
    struct timespec timeout = {.tv_sec = nanoseconds / SECOND, .tv_nsec = nanoseconds % SECOND};
    int n = epoll_pwait2(epoll, events, 512, &timeout, NULL);
    for (int i = 0; i < n; i++) {
        struct client *c = events[i].data.ptr;
        if (c->fd >= 0 && c->state == CONNECTING) connected(c);
        else if (c->fd >= 0 && events[i].events & EPOLLOUT) client_flush(c);
        if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
    }
}

void clients_create(int count)
{
    epoll = epoll_create1(EPOLL_CLOEXEC);
    clients = calloc(count, sizeof *clients);
    for (int i = 0; i < count; i++) clients[i].id = i, clients[i].fd = -1;
}

int clients_open(int count)
{
    uint64_t deadline = now() + client_options.timeout * SECOND;
    int next = 0;
    while (open_count + dead_count < count && now() < deadline) {
        while (next < count && opening_count < OPENING_AT_ONCE) client_connect(&clients[next++]);
        clients_poll(20);
    }
    for (int i = 0; i < count; i++) {
        if (i < next && clients[i].state != CONNECTING && clients[i].state != HANDSHAKE) continue;
        fault(&faults.connect, "not open within %g s", client_options.timeout);
        client_kill(&clients[i]);
    }
    return open_count;
}

void clients_close(int count)
{
    uint64_t deadline = now() + 3 * SECOND / 2;
    for (int i = 0; i < count; i++) client_close(&clients[i]);
    for (bool left = true; left && now() < deadline;) {
        left = false;
        for (int i = 0; i < count; i++) left |= clients[i].state == CLOSING;
        if (left) clients_poll(20);
    }
    for (int i = 0; i < count; i++) client_kill(&clients[i]);
}
