/* A file or directory of the machine's, written to stdout as a tar archive in GNU's format (GNU tar's manual, "Basic Tar Format"):
 * names relative to the directory that it is in, one filesystem, sockets left out. */
#include "init.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { BLOCK = 512, PIECE = 64 * 1024, NAME = 100 };

static char name[PATH_MAX]; /* of the entry that is being written, in the archive */
static uint8_t piece[PIECE];

static void put(const void *data, size_t size) {
    if (fwrite(data, 1, size, stdout) != size) task_fail(TASK_FAILED, "cannot write: %s", strerror(errno));
}

static void pad(uint64_t size) {
    static const uint8_t zeros[BLOCK];
    if (size % BLOCK) put(zeros, BLOCK - size % BLOCK);
}

/* Octal with a NUL, or where it does not fit, GNU's big-endian binary. */
static void put_number(uint8_t *field, size_t width, int64_t value) {
    if (value >= 0 && (width > 21 || value < (int64_t)1 << 3 * (width - 1))) {
        char digits[32];
        snprintf(digits, sizeof digits, "%0*llo", (int)width - 1, (unsigned long long)value);
        memcpy(field, digits, width);
        return;
    }
    for (size_t i = width; i > 0; i--, value >>= 8) field[i - 1] = (uint8_t)value;
    field[0] |= 0x80;
}

static void put_block(const char *text, const char *link, char type, const struct stat *st, uint64_t size) {
    uint8_t block[BLOCK] = {0};
    memcpy(block, text, strnlen(text, NAME));
    put_number(block + 100, 8, st->st_mode & 07777);
    put_number(block + 108, 8, st->st_uid);
    put_number(block + 116, 8, st->st_gid);
    put_number(block + 124, 12, (int64_t)size);
    put_number(block + 136, 12, st->st_mtime);
    memset(block + 148, ' ', 8);
    block[156] = (uint8_t)type;
    memcpy(block + 157, link, strnlen(link, NAME));
    memcpy(block + 257, "ustar  ", 8);
    if (type == '3' || type == '4') {
        put_number(block + 329, 8, major(st->st_rdev));
        put_number(block + 337, 8, minor(st->st_rdev));
    }
    unsigned sum = 0;
    for (size_t i = 0; i < BLOCK; i++) sum += block[i];
    snprintf((char *)block + 148, 8, "%06o", sum);
    block[155] = ' ';
    put(block, BLOCK);
}

static void put_long(const char *text, char type) {
    struct stat none = {0};
    size_t size = strlen(text) + 1;
    if (size <= NAME + 1) return;
    put_block("././@LongLink", "", type, &none, size);
    put(text, size);
    pad(size);
}

static void put_header(const char *link, char type, const struct stat *st, uint64_t size) {
    put_long(link, 'K');
    put_long(name, 'L');
    put_block(name, link, type, st, size);
}

static void send_file(int directory, const char *entry, int follow) {
    struct stat st;
    int fd = openat(directory, entry, O_RDONLY | O_CLOEXEC | O_NONBLOCK | follow);
    if (fd < 0 && errno == ENOENT) return; /* gone meanwhile */
    if (fd < 0 || fstat(fd, &st) < 0) task_fail(TASK_FAILED, "%.200s: %s", name, strerror(errno));
    if (!S_ISREG(st.st_mode)) task_fail(TASK_FAILED, "%.200s: changed while it was read", name);
    put_header("", '0', &st, (uint64_t)st.st_size);
    for (uint64_t left = (uint64_t)st.st_size; left;) { /* what is appended meanwhile is not of it */
        ssize_t got = read(fd, piece, left < PIECE ? left : PIECE);
        if (got <= 0) task_fail(TASK_FAILED, "%.200s: %s", name, got ? strerror(errno) : "became shorter while it was read");
        put(piece, (size_t)got);
        left -= (uint64_t)got;
    }
    pad((uint64_t)st.st_size);
    close(fd);
}

static void send_link(int directory, const char *entry, const struct stat *st) {
    char target[PATH_MAX];
    ssize_t length = readlinkat(directory, entry, target, sizeof target - 1);
    if (length < 0) return; /* gone meanwhile */
    target[length] = 0;
    put_header(target, '2', st, 0);
}

static void send_entry(int directory, const char *entry, dev_t device, int follow);

static void send_directory(int directory, const char *entry, dev_t device, int follow) {
    struct stat st;
    size_t length = strlen(name);
    int fd = openat(directory, entry, O_RDONLY | O_DIRECTORY | O_CLOEXEC | follow);
    if (fd < 0 && errno == ENOENT) return;
    if (fd < 0 || fstat(fd, &st) < 0) task_fail(TASK_FAILED, "%.200s: %s", name, strerror(errno));
    if (length + 2 > sizeof name) task_fail(TASK_FAILED, "%.200s...: its name is too long", name);
    name[length] = '/', name[length + 1] = 0;
    put_header("", '5', &st, 0);
    DIR *open = device && st.st_dev != device ? NULL : fdopendir(fd);
    if (!open) close(fd);
    for (struct dirent *one; open && (one = readdir(open));) {
        if (!strcmp(one->d_name, ".") || !strcmp(one->d_name, "..")) continue;
        if (length + strlen(one->d_name) + 2 > sizeof name) task_fail(TASK_FAILED, "%.200s...: its name is too long", name);
        strcpy(name + length + 1, one->d_name);
        send_entry(dirfd(open), one->d_name, st.st_dev, O_NOFOLLOW);
    }
    if (open) closedir(open);
    name[length] = 0;
}

static void send_entry(int directory, const char *entry, dev_t device, int follow) {
    struct stat st;
    if (fstatat(directory, entry, &st, follow ? AT_SYMLINK_NOFOLLOW : 0) < 0) {
        if (device && errno == ENOENT) return;
        task_fail(errno == ENOENT || errno == ENOTDIR ? TASK_NOT_FOUND : TASK_FAILED, "%.200s: %s", entry, strerror(errno));
    }
    if (S_ISREG(st.st_mode)) send_file(directory, entry, follow);
    else if (S_ISDIR(st.st_mode)) send_directory(directory, entry, device, follow);
    else if (S_ISLNK(st.st_mode)) send_link(directory, entry, &st);
    else if (!S_ISSOCK(st.st_mode)) put_header("", S_ISCHR(st.st_mode) ? '3' : S_ISBLK(st.st_mode) ? '4' : '6', &st, 0);
}

/* The last name of a path; "." for the root, and where the path ends in it: what is in there, without the directory's own name. */
static void name_of(const char *path) {
    size_t end = strlen(path);
    while (end && path[end - 1] == '/') end--;
    size_t begin = end;
    while (begin && path[begin - 1] != '/') begin--;
    if (end - begin >= sizeof name - 2) task_fail(TASK_FAILED, "the name is too long");
    memcpy(name, path + begin, end - begin);
    name[end - begin] = 0;
    if (!strcmp(name, "..")) task_fail(TASK_FAILED, "%.200s has no name of its own", path);
    if (!*name) strcpy(name, ".");
}

void files_send(const char *path, const char *unused) {
    (void)unused;
    struct rlimit files = {4096, 4096}; /* a descriptor for each level */
    static char buffer[PIECE];
    static const uint8_t end[2 * BLOCK];
    if (*path != '/') task_fail(TASK_FAILED, "%.200s is not an absolute path", path);
    setrlimit(RLIMIT_NOFILE, &files);
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    name_of(path);
    send_entry(AT_FDCWD, path, 0, 0);
    put(end, sizeof end);
    if (fflush(stdout)) task_fail(TASK_FAILED, "cannot write: %s", strerror(errno));
}
