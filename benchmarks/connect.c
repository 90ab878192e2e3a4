// connect: handshake and close handshake, again and again.
#include "wsload.h"

static uint64_t cycles, bad_cycles;

static void finish_cycle(struct client *c)
{
    if (c->open_time && c->close_received) {
        cycles++;
        if (measuring) histogram_add(&latency, c->open_time - c->connect_time);
        return;
    }
    bad_cycles++;
    if (c->open_time) fault(&faults.closed, "the connection ended without a close frame");
}

static void connect_round(void)
{
    clients_poll(10);
    uint64_t time = now();
    for (int i = 0; i < options.connections; i++) {
        struct client *c = &clients[i];
        if (c->state != DEAD && time > c->connect_time + 5 * SECOND) {
            fault(&faults.connect, c->state == CLOSING ? "no close frame in 5 s" : "no handshake in 5 s");
            client_kill(c);
        }
        if (c->state != DEAD) continue;
        finish_cycle(c);
        client_connect(c);
    }
}

void run_connect(void)
{
    for (int i = 0; i < options.connections; i++) client_connect(&clients[i]);
    for (uint64_t end = now() + options.warm * SECOND; now() < end;) connect_round();
    cycles = 0;
    window_start();
    while (!window_over(cycles)) connect_round();
    window_end();
    uint64_t done = cycles;
    for (int i = 0; i < options.connections; i++) client_kill(&clients[i]);
    print_result(done, done / window_seconds(), "\"bad\":%llu,", (unsigned long long)bad_cycles);
}
