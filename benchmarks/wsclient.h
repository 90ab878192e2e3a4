// WebSocket clients in one thread, on epoll: the handshake, frames, and a check of every byte that comes back.
#ifndef WSCLIENT_H
#define WSCLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SECOND 1000000000ull  // times are in nanoseconds
#define PREFIX_SIZE 32        // bytes of a message kept in client.prefix

struct client_options {
    const char *host, *path, *origin;  // origin: "" sends none, NULL the server's own
    int port;
    int sources;            // source addresses from 127.0.0.2 on; 0: the system chooses
    double timeout;         // seconds for all handshakes together
    bool raw;               // plain TCP, no WebSocket: the stream is cut into messages of payload_size
    bool deflate;           // offer permessage-deflate
    char headers[8192];     // more lines for the handshake, each with its CRLF
};

enum state { UNUSED, CONNECTING, HANDSHAKE, OPEN, CLOSING, DEAD };

struct client {
    int fd, id;
    enum state state;
    bool writable_wanted;     // EPOLLOUT is set
    bool close_received;
    bool deflated, server_resets;  // permessage-deflate; server_no_context_takeover
    uint64_t connect_time, open_time;
    // the frame that is being read
    uint8_t header[10], header_size, opcode;
    bool fin;
    uint64_t frame_left;
    uint8_t control[125], control_size;
    // the message that it belongs to
    bool in_message, compressed, damaged;
    uint8_t message_opcode;
    uint64_t message_size;
    uint8_t prefix[PREFIX_SIZE];
    // what the client keeps when it connects again
    const char *path;  // NULL: that of the options
    uint8_t *outbox, *packed;
    size_t outbox_at, outbox_end, outbox_room, packed_size, packed_room;
    char accept[29], *response;
    size_t response_size;
    void *inflater;
};

// What went wrong, counted; `first` is the text of the first.
struct faults {
    uint64_t connect, protocol, payload, type, closed, sequence;
    char first[256];
};

extern struct client_options client_options;
extern struct client *clients;
extern int open_count;
extern struct faults faults;
extern uint64_t pings;
extern uint64_t arrival;  // when the bytes that are being read came

// What every message looks like: the first `own_size` bytes are the load's, the rest must come back as it is here.
extern uint8_t *payload;
extern size_t payload_size, own_size;

// The load's part. A message is described by message_opcode, message_size, prefix and damaged.
void on_open(struct client *c);
void on_message(struct client *c);

uint64_t now(void);
uint64_t random_bits(void);
void fault(uint64_t *counter, const char *format, ...) __attribute__((format(printf, 2, 3)));

void clients_create(int count);
int clients_open(int count);   // connects them, 64 at a time; returns how many are open
void clients_close(int count); // close handshakes, at most 1.5 s
void clients_poll(int milliseconds);
void clients_poll_for(uint64_t nanoseconds);

void client_connect(struct client *c);
void client_queue(struct client *c, uint8_t opcode, const uint8_t *data, size_t size);
void client_flush(struct client *c);
void client_close(struct client *c);
void client_kill(struct client *c);

#endif
