/* What the guest's kernel counts, as numbers of eight bytes (docs/formats.md, "Statistics"). Sources: proc(5), statfs(2). */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <unistd.h>

enum { CPU_TIMES = 8, MAX_TEXT = 64 * 1024 };

static void put(uint64_t number) {
    uint8_t bytes[8];
    put64(bytes, number);
    fwrite(bytes, sizeof bytes, 1, stdout);
}

/* A file of /proc as a string, until the next call; the empty one where it cannot be read. By its size there is nothing in it. */
static const char *text_of(const char *path) {
    static char text[MAX_TEXT];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t have = 0;
    for (ssize_t got = 1; fd >= 0 && got > 0 && have < sizeof text - 1; have += got > 0 ? (size_t)got : 0)
        got = read(fd, text + have, sizeof text - 1 - have);
    if (fd >= 0) close(fd);
    text[have] = 0;
    return text;
}

static void put_memory(void) {
    static const char *const names[] = {"\nMemAvailable:", "\nSwapTotal:", "\nSwapFree:"};
    const char *text = text_of("/proc/meminfo");
    const char *total = strstr(text, "MemTotal:");
    put(total ? strtoull(total + 9, NULL, 10) * 1024 : 0);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *found = strstr(text, names[i]);
        put(found ? strtoull(found + strlen(names[i]), NULL, 10) * 1024 : 0);
    }
}

/* Load averages in thousandths, and how long the machine has run in milliseconds. */
static void put_load(void) {
    double load[3] = {0}, up = 0;
    sscanf(text_of("/proc/loadavg"), "%lf %lf %lf", &load[0], &load[1], &load[2]);
    sscanf(text_of("/proc/uptime"), "%lf", &up);
    for (int i = 0; i < 3; i++) put((uint64_t)(load[i] * 1000 + 0.5));
    put((uint64_t)(up * 1000));
}

/* user, nice, system, idle, iowait, irq, softirq, steal, in ticks, of all CPUs */
static void put_cpu(void) {
    unsigned long long times[CPU_TIMES] = {0};
    sscanf(text_of("/proc/stat"), "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &times[0], &times[1], &times[2], &times[3], &times[4], &times[5],
           &times[6], &times[7]);
    for (int i = 0; i < CPU_TIMES; i++) put(times[i]);
}

/* Bytes that all cards but loopback have received and sent. */
static void put_network(void) {
    uint64_t received = 0, sent = 0;
    for (const char *line = strchr(text_of("/proc/net/dev"), '\n'); line && *line; line = strchr(line, '\n')) {
        unsigned long long in, out;
        char name[32];
        line++;
        if (sscanf(line, " %31[^:]: %llu %*u %*u %*u %*u %*u %*u %*u %llu", name, &in, &out) != 3 || !strcmp(name, "lo")) continue;
        received += in, sent += out;
    }
    put(received);
    put(sent);
}

static void put_filesystem(const char *path) {
    struct statfs fs;
    if (statfs(path, &fs) < 0) task_fail(errno == ENOENT ? TASK_NOT_FOUND : TASK_FAILED, "%.200s: %s", path, strerror(errno));
    uint64_t block = (uint64_t)fs.f_bsize;
    put(fs.f_blocks * block);
    put((fs.f_blocks - fs.f_bfree) * block);
    put(fs.f_bavail * block);
}

/* First what is of the whole machine, then for each path its filesystem's size, and what of it is used and available. */
void statistics_send(char **paths) {
    put_memory();
    put_load();
    put_cpu();
    put_network();
    for (; *paths; paths++) put_filesystem(*paths);
    if (fflush(stdout)) task_fail(TASK_FAILED, "cannot write: %s", strerror(errno));
}
