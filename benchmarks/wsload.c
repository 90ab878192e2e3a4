// wsload: puts load on a WebSocket server from one thread and checks every answer. `wsload --help` lists the options.
// The last line of its output is a JSON object; `rate` is what is measured, `gen_cpu_frac` this process's own share
// of one core (near 1, the server could do more than was asked of it).
#define _GNU_SOURCE
#include "wsload.h"

#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

enum { TEXT = 1, BINARY = 2 };

struct options options = {.connections = 100, .pipeline = 1, .together = 1, .channels = 1,
                          .seconds = 4, .warm = 0.5, .drain = 3, .channel = "chat"};
uint8_t message_opcode;
bool measuring;
struct histogram latency;
struct window window;

void poll_until(uint64_t deadline)
{
    while (now() < deadline) clients_poll(10);
}

void write_hex(uint8_t *out, uint64_t value, int digits)
{
    for (int i = digits - 1; i >= 0; i--, value >>= 4) out[i] = "0123456789abcdef"[value & 15];
}

uint64_t read_hex(const uint8_t *text, int digits)
{
    uint64_t value = 0;
    for (int i = 0; i < digits; i++) value = value << 4 | (text[i] <= '9' ? text[i] - '0' : text[i] - 'a' + 10);
    return value;
}

bool intact(const struct client *c)
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
    struct cpu { double all, kernel; } start, end;  // seconds
} groups[8];
static int group_count;

static struct cpu process_cpu(int pid)
{
    char path[64], text[1024];
    unsigned long user = 0, system = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return (struct cpu){0, 0};
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    text[size > 0 ? size : 0] = 0;
    const char *after_name = strrchr(text, ')');
    if (!after_name) return (struct cpu){0, 0};
    sscanf(after_name + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
    double ticks = sysconf(_SC_CLK_TCK);
    return (struct cpu){(user + system) / ticks, system / ticks};
}

static struct cpu group_cpu(const struct group *g)
{
    struct cpu sum = {0, 0};
    for (int i = 0; i < g->count; i++) {
        struct cpu used = process_cpu(g->pids[i]);
        sum.all += used.all, sum.kernel += used.kernel;
    }
    return sum;
}

static double own_cpu(void)
{
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

void window_start(void)
{
    for (int i = 0; i < group_count; i++) groups[i].start = group_cpu(&groups[i]);
    window.cpu_start = own_cpu();
    window.start = now();
    measuring = true;
}

void window_end(void)
{
    measuring = false;
    window.end = now();
    window.cpu_end = own_cpu();
    for (int i = 0; i < group_count; i++) groups[i].end = group_cpu(&groups[i]);
}

bool window_over(uint64_t counted)
{
    uint64_t time = now(), end = window.start + options.seconds * SECOND;
    return time >= end && (counted >= (uint64_t)options.least || time >= end + 5 * SECOND);
}

double window_seconds(void) { return (double)(window.end - window.start) / SECOND; }

void print_result(uint64_t messages, double rate, const char *format, ...)
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
    for (int i = 0; i < group_count; i++) {
        const struct group *g = &groups[i];
        printf("\"cpu_%s_s\":%.3f,\"kernel_%s_s\":%.3f,", g->name, g->end.all - g->start.all, g->name,
               g->end.kernel - g->start.kernel);
    }
    printf("\"errors\":{\"connect\":%" PRIu64 ",\"protocol\":%" PRIu64 ",\"payload\":%" PRIu64 ",\"type\":%" PRIu64
           ",\"closed\":%" PRIu64 ",\"sequence\":%" PRIu64 "},\"first_error\":\"%s\",\"pings\":%" PRIu64 "}\n",
           faults.connect, faults.protocol, faults.payload, faults.type, faults.closed, faults.sequence, faults.first,
           pings);
}

void announce_open(int count)
{
    printf("OPEN %d\n", count);
    fflush(stdout);
}

/* ---------- modes, options ---------- */

static const struct mode {
    const char *name;
    void (*run)(void);
    void (*received)(struct client *c);
    int smallest;  // payload
} modes[] = {
    {"echo", run_echo, echo_received, ECHO_OWN_SIZE},
    {"idle", run_idle, echo_received, ECHO_OWN_SIZE},
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
          "  fanout   what is published must reach all N members              rate: deliveries/s\n"
          "  connect  handshake and close, again and again                    rate: handshakes/s\n"
          "  idle     N clients open and silent; prints OPEN when they are    rate: opened/s\n"
          "  --host 127.0.0.1   --port 8000   --path /   --header 'Name: value' (repeat)\n"
          "  --origin URL       default: the server's own; '' sends none\n"
          "  -c N     clients (echo, idle), members (fanout), handshakes at once (connect)   100\n"
          "  -p N     messages in flight for each client         1\n"
          "  -s N     bytes of a message                        64\n"
          "  -t S     seconds to measure                         4   --warm S   before that, 0.5\n"
          "  --least N          messages to be counted: up to 5 seconds more, 0\n"
          "  --rate N           echo, fanout: messages/s of all together; 0: the next when all have the last\n"
          "  --drain S          seconds to wait for what is missing at the end, 3\n"
          "  fanout: a client more publishes, on --publisher-path (default: --path),\n"
          "  --redis PORT       or this program itself, in Redis' channel --channel (default: chat)\n"
          "  --script DIGEST    and there by this script of the package, which keeps the messages\n"
          "  --together N       so many are published at once, 1   --window N   and on their way, as many\n"
          "  --channels N       a number stands behind --path and --channel; members and messages take turns\n"
          "  --hold S           when all are subscribed, prints OPEN and waits\n"
          "  --binary           binary messages   --utf8   text that is not ASCII   --json   an object\n"
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

enum { HOST = 256, PORT, PATH, ORIGIN, HEADER, WARM, LEAST, RATE, DRAIN, PUBLISHER_PATH, REDIS, SCRIPT, CHANNEL, TOGETHER,
       WINDOW, CHANNELS, HOLD, BINARY_FLAG, UTF8, JSON, DEFLATE, RAW, SOURCES, TIMEOUT, CPU, HELP };

static void parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"host", 1, 0, HOST},                     {"port", 1, 0, PORT},               {"path", 1, 0, PATH},
        {"origin", 1, 0, ORIGIN},                 {"header", 1, 0, HEADER},           {"warm", 1, 0, WARM},
        {"least", 1, 0, LEAST},                   {"rate", 1, 0, RATE},               {"drain", 1, 0, DRAIN},
        {"publisher-path", 1, 0, PUBLISHER_PATH}, {"redis", 1, 0, REDIS},             {"channel", 1, 0, CHANNEL},
        {"together", 1, 0, TOGETHER},             {"window", 1, 0, WINDOW},           {"channels", 1, 0, CHANNELS},
        {"hold", 1, 0, HOLD},                     {"binary", 0, 0, BINARY_FLAG},      {"utf8", 0, 0, UTF8},
        {"json", 0, 0, JSON},                     {"deflate", 0, 0, DEFLATE},         {"raw", 0, 0, RAW},
        {"src-count", 1, 0, SOURCES},             {"connect-timeout", 1, 0, TIMEOUT}, {"cpu", 1, 0, CPU},
        {"script", 1, 0, SCRIPT},                 {"help", 0, 0, HELP},
        {0, 0, 0, 0},
    };
    struct client_options *c = &client_options;
    payload_size = 64;
    for (int o; (o = getopt_long(argc, argv, "c:p:s:t:", names, 0)) != -1;) {
        switch (o) {
        case 'c': options.connections = atoi(optarg); break;
        case 'p': options.pipeline = atoi(optarg); break;
        case 's': payload_size = atoi(optarg); break;
        case 't': options.seconds = atof(optarg); break;
        case HOST: c->host = optarg; break;
        case PORT: c->port = atoi(optarg); break;
        case PATH: c->path = optarg; break;
        case ORIGIN: c->origin = optarg; break;
        case HEADER: add_header(optarg); break;
        case WARM: options.warm = atof(optarg); break;
        case LEAST: options.least = atoi(optarg); break;
        case RATE: options.rate = atof(optarg); break;
        case DRAIN: options.drain = atof(optarg); break;
        case PUBLISHER_PATH: options.publisher_path = optarg; break;
        case REDIS: options.redis_port = atoi(optarg); break;
        case SCRIPT: options.script = optarg; break;
        case CHANNEL: options.channel = optarg; break;
        case TOGETHER: options.together = atoi(optarg); break;
        case WINDOW: options.window = atoi(optarg); break;
        case CHANNELS: options.channels = atoi(optarg), options.numbered = true; break;
        case HOLD: options.hold = atof(optarg); break;
        case BINARY_FLAG: options.binary = true; break;
        case UTF8: options.utf8 = true; break;
        case JSON: options.json = true; break;
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
    if (!options.window) options.window = options.together;
    static const int smallest_json = sizeof JSON_HEAD JSON_MIDDLE JSON_TAIL + ECHO_OWN_SIZE;
    if (!mode || options.pipeline < 1 || options.connections < 1 || options.together < 1 ||
        options.window < options.together || options.channels < 1 || options.channels > options.connections ||
        (options.channels > 1 && !options.redis_port) || options.seconds <= 0 || payload_size > 1 << 30 ||
        (int)payload_size < (options.json ? smallest_json : mode->smallest) || (options.json && mode->run != run_echo))
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
    if (options.utf8) {
        for (size_t i = PREFIX_SIZE; i + 1 < payload_size; i += 2) {
            payload[i] = 0xc3;
            payload[i + 1] = 0xa0 + i / 2 % 16;
        }
    }
    if (options.json) {
        memcpy(payload, JSON_HEAD, strlen(JSON_HEAD));
        memcpy(payload + strlen(JSON_HEAD) + ECHO_OWN_SIZE, JSON_MIDDLE, strlen(JSON_MIDDLE));
        memcpy(payload + payload_size - strlen(JSON_TAIL), JSON_TAIL, strlen(JSON_TAIL));
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
    prctl(PR_SET_TIMERSLACK, 1000);  // nanoseconds: messages at a rate leave when they are due
    alarm(options.seconds + options.warm + options.drain + options.hold + 3 * client_options.timeout + 15);

    int count = options.connections + 1;
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
