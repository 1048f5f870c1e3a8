/* Settings of a command (a flat list of records) and of the machine (the kernel command line). */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum tag {
    TAG_ARGUMENT = 1,
    TAG_ENVIRONMENT = 2,
    TAG_CWD = 3,
    TAG_USER = 4,
    TAG_HOSTNAME = 5,
    TAG_FLAGS = 6,
    TAG_WINDOW = 7,
    TAG_RLIMIT = 8,
    TAG_FILE = 9,
    TAG_STOP_SIGNAL = 10,
    TAG_LINGER = 11,
    TAG_MOUNT = 12,
    TAG_PROCESS = 13,
};

enum { RECORD_HEADER = 5, FILE_HEADER = 14 };

uint16_t get16(const uint8_t *b) { return (uint16_t)(b[0] | b[1] << 8); }
uint32_t get32(const uint8_t *b) { return get16(b) | (uint32_t)get16(b + 2) << 16; }
uint64_t get64(const uint8_t *b) { return get32(b) | (uint64_t)get32(b + 4) << 32; }

void put16(uint8_t *b, uint16_t v) {
    b[0] = (uint8_t)v;
    b[1] = (uint8_t)(v >> 8);
}
void put32(uint8_t *b, uint32_t v) {
    put16(b, (uint16_t)v);
    put16(b + 2, (uint16_t)(v >> 16));
}
void put64(uint8_t *b, uint64_t v) {
    put32(b, (uint32_t)v);
    put32(b + 4, (uint32_t)(v >> 32));
}

uint8_t *read_file(const char *path, size_t limit, size_t *size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0 || (size_t)st.st_size > limit) {
        if (fd >= 0) close(fd);
        return NULL;
    }
    uint8_t *data = malloc((size_t)st.st_size + 1);
    size_t have = 0;
    while (data && have < (size_t)st.st_size) {
        ssize_t got = read(fd, data + have, (size_t)st.st_size - have);
        if (got <= 0) break;
        have += (size_t)got;
    }
    close(fd);
    *size = have;
    return data;
}

bool write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0) close(fd);
    return written;
}

/* The record at *at: its tag, value and length, the value's NUL checked; 0 at the end, -1 where the list is broken. */
static int record_next(const struct settings *s, size_t *at, uint8_t **value, size_t *length) {
    if (*at == s->size) return 0;
    if (s->size - *at < RECORD_HEADER + 1) return -1;
    uint8_t tag = s->data[*at];
    *length = get32(s->data + *at + 1);
    if (*length > s->size - *at - RECORD_HEADER - 1 || tag == 0) return -1;
    *value = s->data + *at + RECORD_HEADER;
    if ((*value)[*length] != 0) return -1;
    *at += RECORD_HEADER + *length + 1;
    return tag;
}

static int take_number(struct settings *s, int tag, const uint8_t *value, size_t length) {
    if (tag == TAG_RLIMIT) {
        if (length != 20 || s->limit_count == MAX_RLIMITS) return -1;
        s->limits[s->limit_count++] = (struct limit){get32(value), get64(value + 4), get64(value + 12)};
        return 0;
    }
    if (length != 4) return -1;
    if (tag == TAG_FLAGS) s->flags = get32(value);
    if (tag == TAG_STOP_SIGNAL) s->stop_signal = get32(value);
    if (tag == TAG_LINGER) s->linger_ms = get32(value);
    if (tag == TAG_WINDOW) s->rows = get16(value), s->columns = get16(value + 2);
    return 0;
}

/* Length of the role, the role, the path: "volume0" and "/data". */
static int take_mount(struct settings *s, const uint8_t *value, size_t length) {
    if (!length || s->mount_count == MAX_MOUNTS) return -1;
    struct volume *volume = &s->mounts[s->mount_count];
    size_t role = value[0];
    if (!role || role >= sizeof volume->role || length < 1 + role + 1) return -1;
    memcpy(volume->role, value + 1, role);
    volume->path = (const char *)value + 1 + role;
    if (volume->path[0] != '/' || strlen(volume->path) != length - 1 - role) return -1;
    s->mount_count++;
    return 0;
}

/* A record list of its own: arguments, environment, directory, user. */
static int take_process(struct settings *s, const uint8_t *value, size_t length) {
    if (s->other_count == MAX_PROCESSES) return -1;
    if (!s->others && !(s->others = calloc(MAX_PROCESSES, sizeof *s->others))) return -1;
    uint8_t *data = malloc(length + 1);
    if (!data) return -1;
    memcpy(data, value, length);
    struct settings *other = &s->others[s->other_count++];
    return settings_parse(other, data, length) < 0 || other->other_count ? -1 : 0;
}

static int take_record(struct settings *s, int tag, uint8_t *value, size_t length, size_t *argc, size_t *envc) {
    char *text = (char *)value;
    if (tag >= TAG_FLAGS && tag <= TAG_LINGER && tag != TAG_FILE) return take_number(s, tag, value, length);
    if (tag == TAG_FILE) return length >= FILE_HEADER && get16(value + 12) <= length - FILE_HEADER ? 0 : -1;
    if (tag == TAG_MOUNT) return take_mount(s, value, length);
    if (tag == TAG_PROCESS) return take_process(s, value, length);
    if (strlen(text) != length) return -1; /* a NUL inside would cut the string short */
    switch (tag) {
    case TAG_ARGUMENT: s->argv[(*argc)++] = text; return 0;
    case TAG_ENVIRONMENT: s->env[(*envc)++] = text; return 0;
    case TAG_CWD: s->cwd = text; return 0;
    case TAG_USER: s->user = text; return 0;
    case TAG_HOSTNAME: s->hostname = text; return 0;
    default: return -1;
    }
}

/* Takes ownership of ``data``. */
int settings_parse(struct settings *s, uint8_t *data, size_t size) {
    *s = (struct settings){.data = data, .size = size, .cwd = "/", .user = "", .hostname = "", .stop_signal = 15, .linger_ms = 10000};
    size_t at = 0, length, records = 0, argc = 0, envc = 0;
    uint8_t *value;
    int tag;
    while ((tag = record_next(s, &at, &value, &length)) > 0) records++;
    if (tag < 0) return -1;
    s->argv = calloc(records + 1, sizeof *s->argv);
    s->env = calloc(records + 1, sizeof *s->env);
    if (!s->argv || !s->env) return -1;
    at = 0;
    while ((tag = record_next(s, &at, &value, &length)) > 0)
        if (take_record(s, tag, value, length, &argc, &envc) < 0) return -1;
    return argc ? 0 : -1;
}

void settings_free(struct settings *s) {
    for (size_t i = 0; i < s->other_count; i++) settings_free(&s->others[i]);
    free(s->others);
    free(s->argv);
    free(s->env);
    free(s->data);
    *s = (struct settings){0};
}

static void write_settings_file(const uint8_t *value, size_t length) {
    char path[4096];
    size_t path_length = get16(value + 12);
    if (path_length >= sizeof path) return;
    memcpy(path, value + FILE_HEADER, path_length);
    path[path_length] = 0;
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0755);
        *slash = '/';
    }
    /* Replaced, not followed: what the image has there may be a link to anywhere, or a FIFO that would block PID 1. */
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    const uint8_t *data = value + FILE_HEADER + path_length;
    size_t size = length - FILE_HEADER - path_length;
    while (fd >= 0 && size) {
        ssize_t put = write(fd, data, size);
        if (put <= 0) break;
        data += put;
        size -= (size_t)put;
    }
    if (fd < 0 || size || fchown(fd, get32(value + 4), get32(value + 8)) < 0 || fchmod(fd, get32(value) & 07777) < 0)
        say("cannot write %s: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
}

void settings_write_files(const struct settings *s) {
    size_t at = 0, length;
    uint8_t *value;
    int tag;
    while ((tag = record_next(s, &at, &value, &length)) > 0)
        if (tag == TAG_FILE) write_settings_file(value, length);
}

static void copy(char *target, size_t size, const char *text) { snprintf(target, size, "%s", text); }

/* ADDRESS/PREFIX,GATEWAY[,NAMESERVER[,ADDRESS6,GATEWAY6]] */
static void cmdline_network(struct cmdline *c, char *text) {
    char *rest = NULL, *address = strtok_r(text, "/", &rest), *prefix = strtok_r(NULL, ",", &rest);
    char *gateway = strtok_r(NULL, ",", &rest), *nameserver = strtok_r(NULL, ",", &rest);
    if (!address || !prefix || !gateway) return;
    copy(c->address, sizeof c->address, address);
    copy(c->gateway, sizeof c->gateway, gateway);
    copy(c->nameserver, sizeof c->nameserver, nameserver ? nameserver : "");
    c->prefix = atoi(prefix);
    char *address6 = strtok_r(NULL, ",", &rest), *gateway6 = strtok_r(NULL, ",", &rest);
    if (!address6 || !gateway6) return;
    copy(c->address6, sizeof c->address6, address6);
    copy(c->gateway6, sizeof c->gateway6, gateway6);
}

static void cmdline_word(struct cmdline *c, char *word) {
    if (!strncmp(word, "castoff.channel=", 16)) copy(c->channel, sizeof c->channel, word + 16);
    if (!strncmp(word, "castoff.drives=", 15)) copy(c->drives, sizeof c->drives, word + 15);
    if (!strncmp(word, "castoff.net=", 12)) cmdline_network(c, word + 12);
}

void cmdline_read(struct cmdline *c) {
    *c = (struct cmdline){.prefix = -1};
    char text[4096];
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    if (got < 0) return;
    text[got] = 0;
    char *rest = NULL;
    for (char *word = strtok_r(text, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest)) cmdline_word(c, word);
}
