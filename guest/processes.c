/* The list of the machine's processes, written by a child to its stdout.
 *
 * By a child, since a process decides what becomes of whoever reads its command line: it lies in its memory, and that may be
 * a page that never comes (userfaultfd, FUSE). A child that hangs is killed by the host. Sources: proc(5). */
#include "init.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_LISTED = 4096, MAX_SOCKETS = 1024, MAX_DESCRIPTORS = 65536, MAX_COMMAND = 256, MAX_DIRECTORY = 1024, KERNEL_THREAD = 0x00200000 };

struct listed {
    uint64_t user, system, started, rss;
    uint32_t pid, parent;
    char name[64];
};

/* A port that something may connect to: a TCP socket that listens, a UDP socket that is bound. */
struct listening {
    unsigned long inode;
    const char *protocol;
    char address[64];
};

static struct listening sockets[MAX_SOCKETS];
static size_t socket_count, descriptors;

static size_t read_some(int process, const char *file, char *text, size_t size) {
    int fd = openat(process, file, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, size);
    if (fd >= 0) close(fd);
    return got < 0 ? 0 : (size_t)got;
}

/* Fields of /proc/PID/stat; the name, in parentheses, may hold anything. */
static bool parse(char *text, struct listed *listed) {
    char *open_at = strchr(text, '('), *close_at = strrchr(text, ')');
    unsigned flags;
    long pages;
    if (!open_at || !close_at || close_at < open_at) return false;
    *close_at = 0;
    snprintf(listed->name, sizeof listed->name, "%s", open_at + 1);
    unsigned long user, system;
    unsigned long long started;
    if (sscanf(close_at + 1, " %*c %u %*d %*d %*d %*d %u %*u %*u %*u %*u %lu %lu %*d %*d %*d %*d %*d %*d %llu %*u %ld", &listed->parent,
               &flags, &user, &system, &started, &pages) != 6)
        return false;
    listed->user = user, listed->system = system, listed->started = started;
    listed->rss = (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
    return !(flags & KERNEL_THREAD);
}

/* Header, then name, command line (its words apart by NUL), directory. */
static void put_listed(const struct listed *listed, const char *command, size_t length, const char *directory, size_t directory_length) {
    uint8_t header[46];
    size_t name = strlen(listed->name);
    put32(header, listed->pid);
    put32(header + 4, listed->parent);
    put64(header + 8, listed->user);
    put64(header + 16, listed->system);
    put64(header + 24, listed->started);
    put64(header + 32, listed->rss);
    put16(header + 40, (uint16_t)name);
    put16(header + 42, (uint16_t)length);
    put16(header + 44, (uint16_t)directory_length);
    fwrite(header, sizeof header, 1, stdout);
    fwrite(listed->name, name, 1, stdout);
    fwrite(command, length, 1, stdout);
    if (directory_length) fwrite(directory, directory_length, 1, stdout);
}

/* An address in /proc/net/tcp: words of four bytes in this machine's order, then the port. */
static bool parse_address(const char *text, char *address, size_t size) {
    uint32_t words[4];
    unsigned port;
    char host[INET6_ADDRSTRLEN];
    size_t count = strcspn(text, ":") / 8;
    if ((count != 1 && count != 4) || sscanf(text + count * 8, ":%x", &port) != 1) return false;
    for (size_t i = 0; i < count; i++)
        if (sscanf(text + i * 8, "%8x", &words[i]) != 1) return false;
    if (!inet_ntop(count == 1 ? AF_INET : AF_INET6, words, host, sizeof host)) return false;
    snprintf(address, size, count == 1 ? "%s:%u" : "[%s]:%u", host, port);
    return true;
}

static void find_sockets(const char *file, const char *protocol, unsigned wanted) {
    char line[512], local[64];
    FILE *table = fopen(file, "re");
    if (!table) return; /* no IPv6 */
    while (socket_count < MAX_SOCKETS && fgets(line, sizeof line, table)) {
        struct listening *found = &sockets[socket_count];
        unsigned state;
        if (sscanf(line, " %*u: %63s %*s %x %*s %*s %*s %*u %*u %lu", local, &state, &found->inode) != 3 || state != wanted) continue;
        found->protocol = protocol;
        socket_count += parse_address(local, found->address, sizeof found->address);
    }
    fclose(table);
}

/* The sockets of a process, each as an entry of process id 0. */
static void list_sockets(int process, uint32_t pid) {
    int fds = socket_count ? openat(process, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    DIR *entries = fds < 0 ? NULL : fdopendir(fds);
    if (!entries) {
        if (fds >= 0) close(fds);
        return;
    }
    for (struct dirent *entry; descriptors < MAX_DESCRIPTORS && (entry = readdir(entries)); descriptors++) {
        char target[64];
        unsigned long inode;
        ssize_t length = readlinkat(fds, entry->d_name, target, sizeof target - 1);
        if (length < 0) continue;
        target[length] = 0;
        if (sscanf(target, "socket:[%lu]", &inode) != 1) continue;
        for (size_t i = 0; i < socket_count; i++) {
            if (sockets[i].inode != inode) continue;
            struct listed listed = {.parent = pid};
            snprintf(listed.name, sizeof listed.name, "%s", sockets[i].protocol);
            put_listed(&listed, sockets[i].address, strlen(sockets[i].address), NULL, 0);
        }
    }
    closedir(entries);
}

static void list(int process, uint32_t pid) {
    char text[1024], command[MAX_COMMAND], directory[MAX_DIRECTORY];
    struct listed listed = {.pid = pid};
    text[read_some(process, "stat", text, sizeof text - 1)] = 0;
    if (!parse(text, &listed)) return;
    size_t length = read_some(process, "cmdline", command, sizeof command);
    ssize_t got = readlinkat(process, "cwd", directory, sizeof directory);
    put_listed(&listed, command, length, directory, got < 0 ? 0 : (size_t)got);
    list_sockets(process, pid);
}

void processes_list(void) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    DIR *proc = opendir("/proc");
    if (!proc) _exit(EXIT_RUNTIME);
    enum { LISTENS = 0x0A, BOUND = 0x07 }; /* include/net/tcp_states.h; an unconnected UDP socket counts as closed */
    find_sockets("/proc/net/tcp", "tcp", LISTENS);
    find_sockets("/proc/net/tcp6", "tcp", LISTENS);
    find_sockets("/proc/net/udp", "udp", BOUND);
    find_sockets("/proc/net/udp6", "udp", BOUND);
    size_t count = 0;
    for (struct dirent *entry; count < MAX_LISTED && (entry = readdir(proc));) {
        uint32_t pid = (uint32_t)strtoul(entry->d_name, NULL, 10);
        int process = pid ? openat(dirfd(proc), entry->d_name, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
        if (process < 0) continue;
        if (pid != (uint32_t)getpid()) list(process, pid), count++;
        close(process);
    }
    _exit(fflush(stdout) ? EXIT_RUNTIME : 0);
}
