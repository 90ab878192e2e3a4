// echo: every answer is followed by the next message, or messages go out at a rate; idle: one each, at the end.
// A message begins with the client's id and its own number, each as 8 digits; one of JSON has them behind JSON_HEAD.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "wsload.h"

#define MAX_BEHIND 256  // answers that a client waits for at a rate; the messages that are due then wait

static struct echo {
    uint32_t sent, received;
    uint64_t *sent_at;  // times of those in flight
} *echoes;
static int in_flight_size;
static size_t own_at;
static uint64_t answers, answers_in_window;
static bool answering;

static void echo_create(int count)
{
    own_at = options.json ? strlen(JSON_HEAD) : 0;
    own_size = own_at + ECHO_OWN_SIZE;
    in_flight_size = options.rate > 0 ? MAX_BEHIND : options.pipeline;
    echoes = calloc(count, sizeof *echoes);
    for (int i = 0; i < count; i++) echoes[i].sent_at = calloc(in_flight_size, sizeof *echoes->sent_at);
}

static void echo_send(struct client *c, uint64_t time)
{
    struct echo *e = &echoes[c->id];
    write_hex(payload + own_at, c->id, 8);
    write_hex(payload + own_at + 8, e->sent, 8);
    e->sent_at[e->sent++ % in_flight_size] = time;
    client_queue(c, message_opcode, payload, payload_size);
}

void echo_received(struct client *c)
{
    struct echo *e = &echoes[c->id];
    if (e->received == e->sent) {
        fault(&faults.sequence, "an answer to nothing");
        return;
    }
    const uint8_t *own = c->prefix + own_at;
    if (!intact(c)) {
        // said already
    } else if (memcmp(c->prefix, payload, own_at)) {
        fault(&faults.payload, "a message begins with %.*s", (int)own_at, c->prefix);
    } else if (read_hex(own, 8) != (uint64_t)c->id || read_hex(own + 8, 8) != e->received) {
        fault(&faults.sequence, "message %.8s of client %.8s where %08x was due", own + 8, own, e->received);
    }
    uint64_t sent_at = e->sent_at[e->received++ % in_flight_size];
    answers++;
    if (measuring) {
        answers_in_window++;
        histogram_add(&latency, arrival - sent_at);
    }
    if (answering && c->state == OPEN) echo_send(c, now());
}

static uint64_t echoes_missing(void)
{
    uint64_t missing = 0;
    for (int i = 0; i < options.connections; i++) missing += echoes[i].sent - echoes[i].received;
    return missing;
}

// The clients take turns. The time of a message is when it was due: waiting for a slow server counts.
static void send_at_rate(uint64_t end)
{
    static uint64_t due, turn;
    if (!due) due = now();
    for (uint64_t time; (time = now()) < end && open_count;) {
        while (due <= time) {
            struct client *c = &clients[turn % options.connections];
            if (c->state == OPEN) {
                if (echoes[c->id].sent - echoes[c->id].received == MAX_BEHIND) break;
                echo_send(c, due);
                client_flush(c);
            }
            turn++;
            due += SECOND / options.rate;
        }
        clients_poll_for(due > time ? due - time : SECOND / 1000);
    }
}

static void echo_until(uint64_t end)
{
    if (options.rate > 0) send_at_rate(end);
    else poll_until(end);
}

void run_echo(void)
{
    int count = options.connections;
    echo_create(count);
    int opened = clients_open(count);
    answering = options.rate == 0;
    for (int i = 0; answering && i < count; i++) {
        for (int k = 0; k < options.pipeline && clients[i].state == OPEN; k++) echo_send(&clients[i], now());
        client_flush(&clients[i]);
    }
    echo_until(now() + options.warm * SECOND);
    window_start();
    echo_until(window.start + options.seconds * SECOND);
    while (!window_over(answers_in_window)) echo_until(now() + SECOND / 100);
    window_end();
    answering = false;
    uint64_t deadline = now() + options.drain * SECOND;
    while (echoes_missing() && open_count && now() < deadline) clients_poll(10);
    uint64_t lost = echoes_missing();
    int alive = open_count;
    clients_close(count);
    print_result(answers_in_window, answers_in_window / window_seconds(),
                 "\"open\":%d,\"alive\":%d,\"lost\":%" PRIu64 ",\"deflated\":%d,", opened, alive, lost,
                 clients[0].deflated);
}

void run_idle(void)
{
    int count = options.connections, next = 0;
    uint64_t sent = 0, start = now();
    echo_create(count);
    int opened = clients_open(count);
    double open_seconds = (double)(now() - start) / SECOND;
    announce_open(opened);
    window_start();
    poll_until(window.start + options.seconds * SECOND);
    window_end();
    int alive = open_count;
    measuring = true;
    uint64_t deadline = now() + client_options.timeout * SECOND;
    while ((next < count || answers < sent) && now() < deadline) {
        for (; next < count && sent - answers < 100; next++) {
            if (clients[next].state != OPEN) continue;
            echo_send(&clients[next], now());
            client_flush(&clients[next]);
            sent++;
        }
        clients_poll(10);
    }
    uint64_t lost = echoes_missing();
    clients_close(count);
    print_result(opened, opened / open_seconds,
                 "\"open\":%d,\"open_s\":%.3f,\"alive\":%d,\"answered\":%" PRIu64 ",\"lost\":%" PRIu64 ",", opened,
                 open_seconds, alive, answers, lost);
}
