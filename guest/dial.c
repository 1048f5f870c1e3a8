/* A connection to a TCP port of this machine, for the host: a child's stdin and stdout are its two directions.
 *
 * So health checks and forwarded ports work under every VMM and without a network. It goes to the machine's own address, where
 * the world would come from: a server on 127.0.0.1 alone is not reachable there, either. */
#include "init.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PIECE = 16 * 1024, REPORT = 3, MAX_DESCRIPTORS = 1024 };

/* One direction. */
struct way {
    int from, to;
    size_t have, sent; /* of bytes: have > sent: some wait to be written */
    bool over;         /* there is no more to read */
    uint8_t bytes[PIECE];
};

/* Copies of init's descriptors would keep others' streams from ending. */
static void keep_streams(int report) {
    dup2(report, REPORT);
    if (syscall(SYS_close_range, REPORT + 1, ~0u, 0) == 0) return;
    for (int fd = REPORT + 1; fd < MAX_DESCRIPTORS; fd++) close(fd); /* Linux before 5.9 */
}

static void give_up(const char *what, unsigned long port) {
    char report[160] = {REPORT_FAILED};
    int length = snprintf(report + 1, sizeof report - 1, "connect to port %lu: %s", port, what);
    if (write(REPORT, report, (size_t)length + 2) < 0) say("cannot report: %s", strerror(errno));
    _exit(EXIT_RUNTIME);
}

static int connect_to(const char *text) {
    unsigned long port = strtoul(text, NULL, 10);
    if (!port || port > 65535) give_up("there is no such port", port);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = inet_addr(network_own())};
    int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (sock < 0 || connect(sock, (struct sockaddr *)&to, sizeof to) < 0) give_up(strerror(errno), port);
    return sock;
}

static bool waits(const struct way *way) { return way->have > way->sent; }

static bool again(void) { return errno == EAGAIN || errno == EINTR; }

/* As far as it goes without waiting. */
static void move(struct way *way) {
    if (waits(way)) {
        ssize_t put = write(way->to, way->bytes + way->sent, way->have - way->sent);
        if (put > 0) way->sent += (size_t)put;
        else if (put < 0 && !again()) way->over = true, way->sent = way->have; /* nobody reads it any more */
        return;
    }
    ssize_t got = read(way->from, way->bytes, sizeof way->bytes);
    if (got < 0 && again()) return;
    way->sent = 0;
    way->have = got > 0 ? (size_t)got : 0;
    way->over = got <= 0;
}

static struct pollfd wanted(const struct way *way) {
    if (waits(way)) return (struct pollfd){.fd = way->to, .events = POLLOUT};
    return (struct pollfd){.fd = way->over ? -1 : way->from, .events = POLLIN};
}

static void relay(int sock) {
    static struct way in, out;
    in.from = 0, in.to = out.from = sock, out.to = 1;
    bool told = false;
    while (!out.over || waits(&out)) { /* the server's last word ends it */
        struct pollfd polled[2] = {wanted(&in), wanted(&out)};
        if (poll(polled, 2, -1) < 0) continue;
        if (polled[0].revents) move(&in);
        if (polled[1].revents) move(&out);
        if (in.over && !waits(&in) && !told) told = true, shutdown(sock, SHUT_WR);
    }
}

void dial_port(const struct settings *settings, int report) {
    keep_streams(report);
    int sock = connect_to(settings->argv[1] ? settings->argv[1] : "");
    uint8_t clock[1 + 8] = {REPORT_CLOCK}; /* the host hears that it is connected when the report ends */
    put64(clock + 1, now_ns());
    if (write(REPORT, clock, sizeof clock) < 0) _exit(EXIT_RUNTIME);
    close(REPORT);
    for (int fd = 0; fd < 2; fd++) fcntl(fd, F_SETFL, O_NONBLOCK);
    fcntl(sock, F_SETFL, O_NONBLOCK);
    relay(sock);
    _exit(0);
}
