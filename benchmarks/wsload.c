// wsload: puts load on a WebSocket server from one thread and checks every answer. `wsload --help` lists the options.
// The last line of its output is a JSON object; `rate` is what is measured, `gen_cpu_frac` this process's own share
// of one core (near 1, the server could do more than was asked of it).
#define _GNU_SOURCE
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "histogram.h"
#include "wsclient.h"

enum { TEXT = 1, BINARY = 2 };

static struct {
    const char *mode;
    int connections, pipeline, at_once, window;
    double seconds, warm, rate, drain;
    bool binary, utf8;
} options = {.connections = 100, .pipeline = 1, .at_once = 50, .window = 1, .seconds = 4, .warm = 0.5, .drain = 3};

static uint8_t message_opcode;
static bool measuring;
static struct histogram latency;

static void poll_until(uint64_t deadline)
{
    while (now() < deadline) clients_poll(10);
}

static void write_hex(uint8_t *out, uint64_t value, int digits)
{
    for (int i = digits - 1; i >= 0; i--, value >>= 4) out[i] = "0123456789abcdef"[value & 15];
}

static uint64_t read_hex(const uint8_t *text, int digits)
{
    uint64_t value = 0;
    for (int i = 0; i < digits; i++) value = value << 4 | (text[i] <= '9' ? text[i] - '0' : text[i] - 'a' + 10);
    return value;
}

// Length, type and everything behind the load's own part.
static bool intact(const struct client *c)
{
    if (c->message_opcode != message_opcode)
        fault(&faults.type, "opcode %d, not %d", c->message_opcode, message_opcode);
    if (c->message_size == payload_size && !c->damaged) return true;
    fault(&faults.payload, "%" PRIu64 " bytes for %zu%s", c->message_size, payload_size, c->damaged ? ", changed" : "");
    return false;
}

/* ---------- the time that is measured, and what CPU it took ---------- */

static struct group {
    char name[32];
    int pids[64], count;
    double start, end;
} groups[8];
static int group_count;
static struct {
    uint64_t start, end;
    double cpu_start, cpu_end;
} window;

static double process_cpu(int pid)  // seconds
{
    char path[64], text[1024];
    unsigned long user = 0, system = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    text[size > 0 ? size : 0] = 0;
    const char *after_name = strrchr(text, ')');
    if (!after_name) return 0;
    sscanf(after_name + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
    return (double)(user + system) / sysconf(_SC_CLK_TCK);
}

static double group_cpu(const struct group *g)
{
    double sum = 0;
    for (int i = 0; i < g->count; i++) sum += process_cpu(g->pids[i]);
    return sum;
}

static double own_cpu(void)
{
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static void window_start(void)
{
    for (int i = 0; i < group_count; i++) groups[i].start = group_cpu(&groups[i]);
    window.cpu_start = own_cpu();
    window.start = now();
    measuring = true;
}

static void window_end(void)
{
    measuring = false;
    window.end = now();
    window.cpu_end = own_cpu();
    for (int i = 0; i < group_count; i++) groups[i].end = group_cpu(&groups[i]);
}

static double window_seconds(void) { return (double)(window.end - window.start) / SECOND; }

// The result: what the mode has to say (the inside of a JSON object, with a comma at its end) and what all have.
static void print_result(uint64_t messages, double rate, const char *format, ...)
{
    va_list arguments;
    printf("{\"mode\":\"%s\",\"msgs\":%" PRIu64 ",\"rate\":%.1f,", options.mode, messages, rate);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\"p50_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f,", histogram_percentile(&latency, 50) / 1e3,
           histogram_percentile(&latency, 99) / 1e3, latency.max / 1e3);
    printf("\"window_s\":%.3f,\"gen_cpu_frac\":%.3f,", window_seconds(),
           (window.cpu_end - window.cpu_start) / window_seconds());
    for (int i = 0; i < group_count; i++) printf("\"cpu_%s_s\":%.3f,", groups[i].name, groups[i].end - groups[i].start);
    printf("\"errors\":{\"connect\":%" PRIu64 ",\"protocol\":%" PRIu64 ",\"payload\":%" PRIu64 ",\"type\":%" PRIu64
           ",\"closed\":%" PRIu64 ",\"sequence\":%" PRIu64 "},\"first_error\":\"%s\",\"pings\":%" PRIu64 "}\n",
           faults.connect, faults.protocol, faults.payload, faults.type, faults.closed, faults.sequence, faults.first,
           pings);
}

/* ---------- echo: every answer is followed by the next message; idle: one each, at the end ---------- */
// A message begins with the client's id and its own number, each as 8 digits.

static struct echo {
    uint32_t sent, received;
    uint64_t *sent_at;  // times of those in flight
} *echoes;
static uint64_t answers, answers_in_window;
static bool answering;

static void echo_create(int count)
{
    own_size = 16;
    echoes = calloc(count, sizeof *echoes);
    for (int i = 0; i < count; i++) echoes[i].sent_at = calloc(options.pipeline, sizeof *echoes->sent_at);
}

static void echo_send(struct client *c)
{
    struct echo *e = &echoes[c->id];
    write_hex(payload, c->id, 8);
    write_hex(payload + 8, e->sent, 8);
    e->sent_at[e->sent++ % options.pipeline] = now();
    client_queue(c, message_opcode, payload, payload_size);
}

static void echo_received(struct client *c)
{
    struct echo *e = &echoes[c->id];
    if (e->received == e->sent) {
        fault(&faults.sequence, "an answer to nothing");
        return;
    }
    if (intact(c) && (read_hex(c->prefix, 8) != (uint64_t)c->id || read_hex(c->prefix + 8, 8) != e->received))
        fault(&faults.sequence, "message %.8s of client %.8s where %08x was due", c->prefix + 8, c->prefix, e->received);
    uint64_t sent_at = e->sent_at[e->received++ % options.pipeline];
    answers++;
    if (measuring) {
        answers_in_window++;
        histogram_add(&latency, arrival - sent_at);
    }
    if (answering && c->state == OPEN) echo_send(c);
}

static uint64_t echoes_missing(void)
{
    uint64_t missing = 0;
    for (int i = 0; i < options.connections; i++) missing += echoes[i].sent - echoes[i].received;
    return missing;
}

static void run_echo(void)
{
    int count = options.connections;
    echo_create(count);
    int opened = clients_open(count);
    answering = true;
    for (int i = 0; i < count; i++) {
        for (int k = 0; k < options.pipeline && clients[i].state == OPEN; k++) echo_send(&clients[i]);
        client_flush(&clients[i]);
    }
    poll_until(now() + options.warm * SECOND);
    window_start();
    poll_until(window.start + options.seconds * SECOND);
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

static void run_idle(void)
{
    int count = options.connections, next = 0;
    uint64_t sent = 0, start = now();
    echo_create(count);
    int opened = clients_open(count);
    double open_seconds = (double)(now() - start) / SECOND;
    printf("OPEN %d\n", opened);  // the time to look at the server's memory
    fflush(stdout);
    window_start();
    poll_until(window.start + options.seconds * SECOND);
    window_end();
    int alive = open_count;
    measuring = true;
    uint64_t deadline = now() + client_options.timeout * SECOND;
    while ((next < count || answers < sent) && now() < deadline) {
        for (; next < count && sent - answers < 100; next++) {
            if (clients[next].state != OPEN) continue;
            echo_send(&clients[next]);
            client_flush(&clients[next]);
            sent++;
        }
        clients_poll(10);
    }
    uint64_t lost = echoes_missing();
    clients_close(count);
    print_result(opened, opened / open_seconds,
                 "\"open\":%d,\"open_s\":%.3f,\"alive\":%d,\"echo_ok\":%" PRIu64 ",\"lost\":%" PRIu64 ",", opened,
                 open_seconds, alive, answers, lost);
}

/* ---------- connect: handshake and close handshake, again and again ---------- */

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
    for (int i = 0; i < options.at_once; i++) {
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

static void run_connect(void)
{
    for (int i = 0; i < options.at_once; i++) client_connect(&clients[i]);
    for (uint64_t end = now() + options.warm * SECOND; now() < end;) connect_round();
    cycles = 0;
    window_start();
    for (uint64_t end = window.start + options.seconds * SECOND; now() < end;) connect_round();
    window_end();
    uint64_t done = cycles;
    for (int i = 0; i < options.at_once; i++) client_kill(&clients[i]);
    print_result(done, done / window_seconds(), "\"bad\":%" PRIu64 ",", bad_cycles);
}

/* ---------- fanout: one client more publishes; what it sends must reach every other ---------- */
// A message begins with F, its phase (P: is everybody subscribed? M: measured), its number (8 digits) and the time
// it was sent at (16 digits).

#define MAX_PUBLISHED (1u << 22)
#define FANOUT_OWN_SIZE 26

static struct member {
    bool ready;
    uint32_t newest;
    uint8_t *seen;  // a bit for each number
    size_t seen_size;
} *members;
static int member_count, ready_count;
static uint32_t *deliveries;  // of each number
static uint32_t published, acknowledged;
static uint64_t delivered, delivered_in_window, duplicates, last_arrival;

static void publish(struct client *c, char phase, uint32_t number, uint64_t time)
{
    payload[0] = 'F';
    payload[1] = phase;
    write_hex(payload + 2, number, 8);
    write_hex(payload + 10, time, 16);
    client_queue(c, message_opcode, payload, payload_size);
    client_flush(c);
}

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

static void fanout_received(struct client *c)
{
    last_arrival = arrival;
    if (c->id >= member_count) return;  // the publisher, where the server counts it as a member
    struct member *m = &members[c->id];
    if (!intact(c)) return;
    if (c->prefix[1] == 'P') {
        ready_count += !m->ready;
        m->ready = true;
        return;
    }
    uint32_t number = read_hex(c->prefix + 2, 8);
    if (!number || number > published) {
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

// Publishes probes, one a second, until every member got one; then waits until the last has arrived everywhere.
static void wait_until_subscribed(struct client *publisher, int open_members)
{
    uint64_t deadline = now() + client_options.timeout * SECOND, next = 0;
    while (ready_count < open_members && publisher->state == OPEN && now() < deadline) {
        if (now() >= next) {
            publish(publisher, 'P', 0, 0);
            next = now() + SECOND;
        }
        clients_poll(10);
    }
    last_arrival = now();
    deadline = now() + 4 * SECOND;
    while (now() < deadline && now() < last_arrival + 3 * SECOND / 10) clients_poll(20);
}

static void acknowledge(int open_members)
{
    while (acknowledged < published && deliveries[acknowledged + 1] >= (uint32_t)open_members) acknowledged++;
}

// At most `window` messages are on their way; one that has not reached everybody in 2 s is given up.
static void publish_when_acknowledged(struct client *publisher, int open_members, uint64_t *timeouts)
{
    static uint64_t last;
    acknowledge(open_members);
    if (published > acknowledged && now() > last + 2 * SECOND) {
        ++*timeouts;
        acknowledged = published;
    }
    while (published - acknowledged < (uint32_t)options.window && publisher->state == OPEN &&
           published < MAX_PUBLISHED - 1) {
        last = now();
        publish(publisher, 'M', ++published, last);
    }
    clients_poll(10);
}

// The time in a message is when it was due: waiting for a slow server counts.
static void publish_at_rate(struct client *publisher, uint64_t *due)
{
    for (; *due <= now() && publisher->state == OPEN && published < MAX_PUBLISHED - 1; *due += SECOND / options.rate)
        publish(publisher, 'M', ++published, *due);
    uint64_t time = now(), left = *due > time ? *due - time : 0;
    clients_poll(left > SECOND / 100 ? 10 : left / 1000000);
}

static void run_fanout(void)
{
    member_count = options.connections;
    own_size = FANOUT_OWN_SIZE;
    members = calloc(member_count, sizeof *members);
    deliveries = calloc(MAX_PUBLISHED, sizeof *deliveries);
    struct client *publisher = &clients[member_count];
    int opened = clients_open(member_count + 1);
    int open_members = opened - (publisher->state == OPEN);
    wait_until_subscribed(publisher, open_members);
    int ready = ready_count;

    uint64_t start = now(), due = start, timeouts = 0;
    uint64_t measure_from = start + options.warm * SECOND, end = measure_from + options.seconds * SECOND;
    while (now() < end && publisher->state == OPEN) {
        if (!window.start && now() >= measure_from) window_start();
        if (options.rate > 0) publish_at_rate(publisher, &due);
        else publish_when_acknowledged(publisher, open_members, &timeouts);
    }
    if (!window.start) window_start();
    window_end();

    uint64_t wanted = (uint64_t)published * open_members, deadline = now() + options.drain * SECOND;
    while (delivered < wanted && now() < deadline) clients_poll(10);
    uint64_t lost = wanted - delivered;
    int alive = open_count;
    clients_close(member_count + 1);
    print_result(delivered_in_window, delivered_in_window / window_seconds(),
                 "\"open\":%d,\"ready\":%d,\"alive\":%d,\"sent\":%u,\"lost\":%" PRIu64 ",\"dup\":%" PRIu64
                 ",\"ack_timeouts\":%" PRIu64 ",",
                 opened, ready, alive, published, lost, duplicates, timeouts);
}

/* ---------- modes, options ---------- */

static const struct mode {
    const char *name;
    void (*run)(void);
    void (*received)(struct client *c);
    int smallest;  // payload
} modes[] = {
    {"echo", run_echo, echo_received, 16},
    {"idle", run_idle, echo_received, 16},
    {"connect", run_connect, NULL, 1},
    {"fanout", run_fanout, fanout_received, FANOUT_OWN_SIZE},
};
static const struct mode *mode;

void on_open(struct client *c)
{
    if (mode->run == run_connect) client_close(c);
}

void on_message(struct client *c)
{
    if (mode->received) mode->received(c);
}

static void usage(int status)
{
    fputs("wsload MODE [options]\n"
          "  echo     each client sends, waits for the answer, sends again    rate: messages/s\n"
          "  fanout   one client publishes, N others must all receive it     rate: deliveries/s\n"
          "  connect  handshake and close, again and again                    rate: handshakes/s\n"
          "  idle     N clients open and silent; prints OPEN when they are    rate: opened/s\n"
          "  --host 127.0.0.1   --port 8000   --path /   --header 'Name: value' (repeat)\n"
          "  --origin URL       default: the server's own; '' sends none\n"
          "  -c N     clients (echo, idle), members (fanout)   100\n"
          "  -k N     handshakes at once (connect)              50\n"
          "  -p N     messages in flight for each client         1\n"
          "  -s N     bytes of a message                        64\n"
          "  -t S     seconds to measure                         4   --warm S   before that, 0.5\n"
          "  --rate N           fanout: messages/s; 0: the next when all have the last\n"
          "  --window N         fanout: messages on their way, 1\n"
          "  --drain S          seconds to wait for what is missing at the end, 3\n"
          "  --binary           binary messages   --utf8   text that is not ASCII\n"
          "  --deflate          offer permessage-deflate\n"
          "  --raw              plain TCP, no WebSocket\n"
          "  --src-count N      source addresses from 127.0.0.2 on, 8; 0: the system chooses\n"
          "  --connect-timeout S   for all handshakes together, 20\n"
          "  --cpu name:pid,pid    CPU seconds of these processes in the measured time (repeat)\n",
          status ? stderr : stdout);
    exit(status);
}

static void add_header(const char *line)
{
    size_t size = strlen(client_options.headers);
    if (size + strlen(line) + 3 > sizeof client_options.headers) usage(2);
    sprintf(client_options.headers + size, "%s\r\n", line);
}

static void add_group(char *text)
{
    char *pids = strchr(text, ':');
    if (!pids || group_count == 8) usage(2);
    *pids++ = 0;
    struct group *g = &groups[group_count++];
    snprintf(g->name, sizeof g->name, "%s", text);
    for (char *pid = strtok(pids, ","); pid && g->count < 64; pid = strtok(NULL, ",")) g->pids[g->count++] = atoi(pid);
}

enum { HOST = 256, PORT, PATH, ORIGIN, HEADER, WARM, RATE, WINDOW, DRAIN, BINARY_FLAG, UTF8, DEFLATE, RAW, SOURCES,
       TIMEOUT, CPU, HELP };

static void parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"host", 1, 0, HOST},       {"port", 1, 0, PORT},          {"path", 1, 0, PATH},
        {"origin", 1, 0, ORIGIN},   {"header", 1, 0, HEADER},      {"warm", 1, 0, WARM},
        {"rate", 1, 0, RATE},       {"window", 1, 0, WINDOW},      {"drain", 1, 0, DRAIN},
        {"binary", 0, 0, BINARY_FLAG}, {"utf8", 0, 0, UTF8},       {"deflate", 0, 0, DEFLATE},
        {"raw", 0, 0, RAW},         {"src-count", 1, 0, SOURCES},  {"connect-timeout", 1, 0, TIMEOUT},
        {"cpu", 1, 0, CPU},         {"help", 0, 0, HELP},          {0, 0, 0, 0},
    };
    struct client_options *c = &client_options;
    payload_size = 64;
    for (int o; (o = getopt_long(argc, argv, "c:k:p:s:t:", names, 0)) != -1;) {
        switch (o) {
        case 'c': options.connections = atoi(optarg); break;
        case 'k': options.at_once = atoi(optarg); break;
        case 'p': options.pipeline = atoi(optarg); break;
        case 's': payload_size = atoi(optarg); break;
        case 't': options.seconds = atof(optarg); break;
        case HOST: c->host = optarg; break;
        case PORT: c->port = atoi(optarg); break;
        case PATH: c->path = optarg; break;
        case ORIGIN: c->origin = optarg; break;
        case HEADER: add_header(optarg); break;
        case WARM: options.warm = atof(optarg); break;
        case RATE: options.rate = atof(optarg); break;
        case WINDOW: options.window = atoi(optarg); break;
        case DRAIN: options.drain = atof(optarg); break;
        case BINARY_FLAG: options.binary = true; break;
        case UTF8: options.utf8 = true; break;
        case DEFLATE: c->deflate = true; break;
        case RAW: c->raw = true; break;
        case SOURCES: c->sources = atoi(optarg); break;
        case TIMEOUT: c->timeout = atof(optarg); break;
        case CPU: add_group(optarg); break;
        case HELP: usage(0); break;
        default: usage(2);
        }
    }
    if (optind != argc - 1) usage(2);
    options.mode = argv[optind];
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (!strcmp(options.mode, modes[i].name)) mode = &modes[i];
    if (!mode || options.pipeline < 1 || options.connections < 1 || options.at_once < 1 || options.window < 1 ||
        options.seconds <= 0 || payload_size > 1 << 30 || (int)payload_size < mode->smallest)
        usage(2);
#ifndef USE_ZLIB
    if (c->deflate) {
        fputs("wsload: built without zlib, there is no --deflate\n", stderr);
        exit(2);
    }
#endif
}

// The same text in every run.
static void fill_payload(void)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 ,";
    uint64_t state = 12345678901;
    payload = malloc(payload_size);
    for (size_t i = 0; i < payload_size; i++) {
        state = state * 6364136223846793005 + 1442695040888963407;
        payload[i] = letters[state >> 58];
    }
    if (!options.utf8) return;
    for (size_t i = PREFIX_SIZE; i + 1 < payload_size; i += 2) {
        payload[i] = 0xc3;
        payload[i + 1] = 0xa0 + i / 2 % 16;
    }
}

static void too_late(int number)
{
    static const char text[] = "wsload: took too long\n";
    (void)number;
    if (write(2, text, sizeof text - 1)) {}
    _exit(3);
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGALRM, too_late);
    alarm(options.seconds + options.warm + options.drain + 3 * client_options.timeout + 15);

    int count = (mode->run == run_connect ? options.at_once : options.connections) + 1;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if ((uint64_t)count + 16 > limit.rlim_cur)
        fprintf(stderr, "wsload: %d connections, but ulimit -n is %lu\n", count, (unsigned long)limit.rlim_cur);

    message_opcode = client_options.raw ? 0 : options.binary ? BINARY : TEXT;
    fill_payload();
    clients_create(count);
    mode->run();
    return 0;
}
