// fanout: what one publishes must reach every member of a channel. Who publishes is one client more, or this program
// itself, straight to Redis.
// A message begins with F, its phase (P: is everybody subscribed? M: measured), its number (8 digits) and the time
// it was sent at (16 digits). The number tells the channel: messages go to the channels in turn.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "wsload.h"

#define MAX_PUBLISHED (1u << 22)
#define HISTORY "django_websocket:history:"  // begins the keys of channels with history

static struct member {
    bool ready;
    uint32_t newest;
    uint8_t *seen;  // a bit for each number
    size_t seen_size;
} *members;
static int member_count, ready_count;
static uint32_t *deliveries;       // of each number
static uint32_t *channel_members;  // that are open
static uint32_t published, acknowledged;
static uint64_t delivered, wanted, delivered_in_window, acknowledged_in_window, duplicates, last_arrival;

/* ---------- publishing ---------- */

static struct client *publisher;  // NULL: straight to Redis
static int redis = -1;
static uint8_t *commands;
static size_t commands_size, commands_room;

static void redis_connect(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(options.redis_port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    redis = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(redis, (struct sockaddr *)&address, sizeof address)) {
        fault(&faults.connect, "Redis: %s", strerror(errno));
        close(redis);
        redis = -1;
    }
}

static void redis_queue(uint32_t channel)
{
    char name[256], head[768], tail[512] = "\r\n";
    int length = snprintf(name, sizeof name, options.numbered ? "%s%u" : "%s", options.channel, channel);
    int size, rest = 2;
    if (options.script) {  // as the package's publish() does it, with a tag that no other message has
        static uint32_t tag;
        size = snprintf(head, sizeof head, "*9\r\n$7\r\nEVALSHA\r\n$%zu\r\n%s\r\n$1\r\n1\r\n$%zu\r\n" HISTORY "%s\r\n$%zu\r\n",
                        strlen(options.script), options.script, strlen(HISTORY) + length, name, payload_size);
        rest = snprintf(tail, sizeof tail, "\r\n$11\r\n%011u\r\n$3\r\n100\r\n$7\r\n7260000\r\n$%d\r\n%s\r\n", tag++, length, name);
    } else {
        size = snprintf(head, sizeof head, "*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$%zu\r\n", length, name, payload_size);
    }
    size_t needed = commands_size + size + payload_size + rest;
    if (needed > commands_room) commands = realloc(commands, commands_room = needed * 2);
    memcpy(commands + commands_size, head, size);
    memcpy(commands + commands_size + size, payload, payload_size);
    memcpy(commands + commands_size + size + payload_size, tail, rest);
    commands_size = needed;
}

static void redis_flush(void)
{
    char replies[65536];
    while (recv(redis, replies, sizeof replies, MSG_DONTWAIT) == sizeof replies) {}
    for (size_t at = 0; at < commands_size;) {
        ssize_t n = send(redis, commands + at, commands_size - at, MSG_NOSIGNAL);
        if (n < 0) {
            fault(&faults.connect, "Redis: %s", strerror(errno));
            close(redis);
            redis = -1;
            break;
        }
        at += n;
    }
    commands_size = 0;
}

static bool can_publish(void) { return publisher ? publisher->state == OPEN : redis >= 0; }

static void publish(char phase, uint32_t number, uint64_t time)
{
    payload[0] = 'F';
    payload[1] = phase;
    write_hex(payload + 2, number, 8);
    write_hex(payload + 10, time, 16);
    if (publisher) client_queue(publisher, message_opcode, payload, payload_size);
    else redis_queue(number % options.channels);
}

static void flush_published(void)
{
    if (publisher) client_flush(publisher);
    else redis_flush();
}

static void publish_next(uint64_t time)
{
    publish('M', ++published, time);
    wanted += channel_members[published % options.channels];
}

/* ---------- receiving ---------- */

static bool first_time(struct member *m, uint32_t number)
{
    if (number / 8 >= m->seen_size) {
        size_t size = (number / 8 + 1) * 2 + 64;
        m->seen = realloc(m->seen, size);
        memset(m->seen + m->seen_size, 0, size - m->seen_size);
        m->seen_size = size;
    }
    uint8_t bit = 1 << (number & 7);
    bool first = !(m->seen[number / 8] & bit);
    m->seen[number / 8] |= bit;
    return first;
}

void fanout_received(struct client *c)
{
    last_arrival = arrival;
    if (c->id >= member_count) return;  // the publisher, where the server counts it as a member
    struct member *m = &members[c->id];
    if (!intact(c)) return;
    uint32_t number = read_hex(c->prefix + 2, 8);
    if (number % options.channels != (uint32_t)c->id % options.channels) {
        fault(&faults.sequence, "%u of another channel", number);
    } else if (c->prefix[1] == 'P') {
        ready_count += !m->ready;
        m->ready = true;
    } else if (!number || number > published) {
        fault(&faults.sequence, "unknown number %u", number);
    } else if (!first_time(m, number)) {
        duplicates++;
    } else {
        if (number < m->newest) fault(&faults.sequence, "%u after %u", number, m->newest);
        m->newest = number;
        delivered++;
        deliveries[number]++;
        if (measuring) {
            delivered_in_window++;
            histogram_add(&latency, arrival - read_hex(c->prefix + 10, 16));
        }
    }
}

/* ---------- the load ---------- */

static void open_members(void)
{
    static char paths[1 << 16];
    int count = member_count = options.connections;
    members = calloc(count, sizeof *members);
    deliveries = calloc(MAX_PUBLISHED, sizeof *deliveries);
    channel_members = calloc(options.channels, sizeof *channel_members);
    if (options.numbered) {  // the path of each: its channel's number behind --path
        size_t at = 0;
        for (int i = 0; i < count; i++) {
            if (i >= options.channels) {
                clients[i].path = clients[i - options.channels].path;
            } else if (at + 256 < sizeof paths) {
                clients[i].path = paths + at;
                at += 1 + snprintf(paths + at, 256, "%s%d/", client_options.path, i);
            }
        }
    }
    if (options.redis_port) {
        redis_connect();
    } else {
        publisher = &clients[count++];
        publisher->path = options.publisher_path;
    }
    clients_open(count);
    for (int i = 0; i < member_count; i++) channel_members[i % options.channels] += clients[i].state == OPEN;
}

static int members_open(void) { return open_count - (publisher && publisher->state == OPEN); }

// Publishes probes, ever less often, until every member got one; then waits until the last has arrived everywhere.
static void wait_until_subscribed(int opened)
{
    uint64_t deadline = now() + client_options.timeout * SECOND, next = 0, pause = SECOND;
    while (ready_count < opened && can_publish() && now() < deadline) {
        if (now() >= next) {
            for (int channel = 0; channel < options.channels; channel++) publish('P', channel, 0);
            flush_published();
            next = now() + pause;
            pause *= 2;
        }
        clients_poll(10);
    }
    last_arrival = now();
    while (now() < deadline && now() < last_arrival + 3 * SECOND / 10) clients_poll(20);
}

static void acknowledge(void)
{
    for (; acknowledged < published; acknowledged++) {
        if (deliveries[acknowledged + 1] < channel_members[(acknowledged + 1) % options.channels]) break;
        acknowledged_in_window += measuring;
    }
}

// At most `window` messages are on their way; one that has not reached everybody in 2 s is given up.
static void publish_when_acknowledged(uint64_t *timeouts)
{
    static uint64_t last;
    uint32_t together = options.together;
    acknowledge();
    if (published > acknowledged && now() > last + 2 * SECOND) {
        ++*timeouts;
        acknowledged = published;
    }
    while (published - acknowledged + together <= (uint32_t)options.window && can_publish() &&
           published + together < MAX_PUBLISHED) {
        last = now();
        for (uint32_t i = 0; i < together; i++) publish_next(last);
        flush_published();
    }
    clients_poll(10);
}

// The time in a message is when it was due: waiting for a slow server counts.
static void publish_at_rate(uint64_t *due)
{
    for (; *due <= now() && can_publish() && published < MAX_PUBLISHED - 1; *due += SECOND / options.rate) {
        publish_next(*due);
        flush_published();
    }
    uint64_t time = now(), left = *due > time ? *due - time : 0;
    clients_poll_for(left > SECOND / 100 ? SECOND / 100 : left);
}

void run_fanout(void)
{
    own_size = FANOUT_OWN_SIZE;
    uint64_t opening = now();
    open_members();
    int opened = members_open();
    double open_seconds = (double)(now() - opening) / SECOND;
    wait_until_subscribed(opened);
    int ready = ready_count;
    if (options.hold > 0) {
        announce_open(opened);
        poll_until(now() + options.hold * SECOND);
    }

    uint64_t start = now(), due = start, timeouts = 0;
    uint64_t measure_from = start + options.warm * SECOND;
    while (can_publish() && !(window.start && window_over(delivered_in_window))) {
        if (!window.start && now() >= measure_from) window_start();
        if (options.rate > 0) publish_at_rate(&due);
        else publish_when_acknowledged(&timeouts);
    }
    if (!window.start) window_start();
    window_end();

    uint64_t deadline = now() + options.drain * SECOND;
    while (delivered < wanted && now() < deadline) clients_poll(10);
    uint64_t lost = wanted - delivered;
    int alive = members_open();
    clients_close(member_count + 1);
    print_result(delivered_in_window, delivered_in_window / window_seconds(),
                 "\"open\":%d,\"open_s\":%.3f,\"ready\":%d,\"alive\":%d,\"published\":%u,\"acknowledged\":%" PRIu64
                 ",\"lost\":%" PRIu64 ",\"dup\":%" PRIu64 ",\"ack_timeouts\":%" PRIu64 ",",
                 opened, open_seconds, ready, alive, published, acknowledged_in_window, lost, duplicates, timeouts);
}
