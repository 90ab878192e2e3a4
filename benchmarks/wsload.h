// What the loads of wsload share: options, the measured time, the result.
#ifndef WSLOAD_H
#define WSLOAD_H

#include "histogram.h"
#include "wsclient.h"

struct options {
    const char *mode, *publisher_path, *channel, *script;
    int connections, pipeline, window, together, channels, redis_port, least;
    double seconds, warm, rate, drain, hold;
    bool binary, utf8, json, numbered;
};

extern struct options options;
extern uint8_t message_opcode;
extern bool measuring;
extern struct histogram latency;

extern struct window {
    uint64_t start, end;
    double cpu_start, cpu_end;
} window;

void window_start(void);
void window_end(void);
double window_seconds(void);
// Whether enough was counted in the time that is measured, or nothing is to be expected any more.
bool window_over(uint64_t counted);

void poll_until(uint64_t deadline);
void write_hex(uint8_t *out, uint64_t value, int digits);
uint64_t read_hex(const uint8_t *text, int digits);
// Length, type and everything behind the load's own part.
bool intact(const struct client *c);
// For whoever looks at the server's memory now.
void announce_open(int count);
// The result: what the mode has to say (the inside of a JSON object, with a comma at its end) and what all have.
void print_result(uint64_t messages, double rate, const char *format, ...) __attribute__((format(printf, 3, 4)));

// The loads.
void run_echo(void);
void run_idle(void);
void echo_received(struct client *c);
void run_connect(void);
void run_fanout(void);
void fanout_received(struct client *c);

#define ECHO_OWN_SIZE 16
#define FANOUT_OWN_SIZE 26
#define JSON_HEAD "{\"from\":\""  // before what is the echo load's own, and behind it:
#define JSON_MIDDLE "\",\"user\":1,\"text\":\""
#define JSON_TAIL "\"}"

#endif
