/* A tar archive from stdin (ustar, GNU's long names and numbers, pax) into the machine: regular files, directories, links.
 *
 * Where the path is a directory, into it; where there is nothing, what the archive's one top-level entry is called is called so.
 * A file appears under its name when it is whole. Names that lead out of the target by ".." are refused. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 512, PIECE = 64 * 1024, MAX_EXTENSION = 64 * 1024 };

struct entry {
    char name[PATH_MAX], link[PATH_MAX];
    char type;
    mode_t mode;
    uid_t uid;
    gid_t gid;
    uint64_t size;
    int64_t mtime;
};

/* What pax and GNU headers said of the entry that follows them. */
struct ahead {
    char name[PATH_MAX], link[PATH_MAX];
    bool has_size, has_mtime, has_uid, has_gid;
    uint64_t size, uid, gid;
    int64_t mtime;
};

static uint8_t piece[PIECE + 1];
static const char *target;
static bool into; /* the target is a directory: names keep their first component */
static bool made; /* it was made here */
static char top[NAME_MAX + 1]; /* where it is not: the only first component that there may be */

static void take(void *data, size_t size) {
    for (uint8_t *at = data; size;) {
        ssize_t got = read(0, at, size);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) task_fail(TASK_FAILED, "cannot read: %s", strerror(errno));
        if (got == 0) task_fail(TASK_FAILED, "the archive is cut short");
        at += got;
        size -= (size_t)got;
    }
}

static void skip(uint64_t size) {
    for (size_t part; size; size -= part) take(piece, part = size < PIECE ? size : PIECE);
}

static uint64_t padding(uint64_t size) { return size % BLOCK ? BLOCK - size % BLOCK : 0; }

static int64_t number(const uint8_t *field, size_t width) {
    if (field[0] & 0x80) { /* GNU's: binary, two's complement */
        int64_t sign = field[0] == 0xff ? -1 : 0, value = sign;
        for (size_t i = 1; i < width; i++) {
            if (value >> 55 != sign) task_fail(TASK_FAILED, "a number in the archive is too large");
            value = (int64_t)((uint64_t)value << 8 | field[i]);
        }
        return value;
    }
    char text[24] = "";
    memcpy(text, field, width < sizeof text ? width : sizeof text - 1);
    char *end;
    unsigned long long value = strtoull(text, &end, 8);
    if ((*end && *end != ' ') || value > INT64_MAX || strchr(text, '-')) task_fail(TASK_FAILED, "a number in the archive is none");
    return (int64_t)value;
}

static bool is_zero(const uint8_t *block) {
    for (size_t i = 0; i < BLOCK; i++)
        if (block[i]) return false;
    return true;
}

static void check(const uint8_t *block) {
    uint64_t sum = 8 * ' ';
    char said[9] = "";
    memcpy(said, block + 148, 8);
    for (size_t i = 0; i < BLOCK; i++)
        if (i < 148 || i >= 156) sum += block[i];
    if (strtoull(said, NULL, 8) != sum) task_fail(TASK_FAILED, "this is no tar archive, or a broken one");
}

static void copy_text(char *to, const char *from, size_t length) {
    if (length >= PATH_MAX) task_fail(TASK_FAILED, "a name in the archive is too long");
    memcpy(to, from, length);
    to[length] = 0;
}

static size_t take_extension(uint64_t size) {
    if (size > MAX_EXTENSION) task_fail(TASK_FAILED, "a header in the archive is too long");
    take(piece, size);
    piece[size] = 0;
    uint8_t rest[BLOCK];
    if (padding(size)) take(rest, padding(size));
    return (size_t)size;
}

static void take_record(struct ahead *ahead, const char *key, const char *value, size_t length) {
    if (!strncmp(key, "GNU.sparse.", 11)) task_fail(TASK_FAILED, "the archive has sparse files: make it without");
    if (!strcmp(key, "path")) copy_text(ahead->name, value, length);
    if (!strcmp(key, "linkpath")) copy_text(ahead->link, value, length);
    if (!strcmp(key, "size")) ahead->size = strtoull(value, NULL, 10), ahead->has_size = true;
    if (!strcmp(key, "mtime")) ahead->mtime = strtoll(value, NULL, 10), ahead->has_mtime = true;
    if (!strcmp(key, "uid")) ahead->uid = strtoull(value, NULL, 10), ahead->has_uid = true;
    if (!strcmp(key, "gid")) ahead->gid = strtoull(value, NULL, 10), ahead->has_gid = true;
}

/* Records "LENGTH KEY=VALUE\n" (POSIX.1-2017, pax, "pax Extended Header"). */
static void take_pax(struct ahead *ahead, uint64_t size) {
    char *at = (char *)piece, *end = at + take_extension(size);
    while (at < end) {
        char *key;
        unsigned long length = strtoul(at, &key, 10);
        char *equals = *key == ' ' ? memchr(key, '=', (size_t)(end - key)) : NULL;
        if (!equals || length > (size_t)(end - at) || at + length <= equals + 1 || at[length - 1] != '\n')
            task_fail(TASK_FAILED, "a header in the archive is broken");
        *equals = at[length - 1] = 0;
        take_record(ahead, key + 1, equals + 1, (size_t)(at + length - 1 - (equals + 1)));
        at += length;
    }
}

static void parse(const uint8_t *block, const struct ahead *ahead, struct entry *entry) {
    const char *text = (const char *)block;
    bool ustar = !memcmp(block + 257, "ustar", 6); /* GNU's own has no prefix there */
    entry->mode = (mode_t)number(block + 100, 8) & 07777;
    entry->uid = (uid_t)(ahead->has_uid ? ahead->uid : (uint64_t)number(block + 108, 8));
    entry->gid = (gid_t)(ahead->has_gid ? ahead->gid : (uint64_t)number(block + 116, 8));
    int64_t size = ahead->has_size && ahead->size <= INT64_MAX ? (int64_t)ahead->size : number(block + 124, 12);
    if (size < 0) task_fail(TASK_FAILED, "a size in the archive is negative");
    entry->size = (uint64_t)size;
    entry->mtime = ahead->has_mtime ? ahead->mtime : number(block + 136, 12);
    if (*ahead->name) strcpy(entry->name, ahead->name);
    else if (ustar && text[345]) snprintf(entry->name, sizeof entry->name, "%.155s/%.100s", text + 345, text);
    else copy_text(entry->name, text, strnlen(text, 100));
    size_t length = strlen(entry->name);
    entry->type = block[156] ? (char)block[156] : '0';
    if (entry->type == '0' && length && entry->name[length - 1] == '/') entry->type = '5'; /* as before POSIX */
    if (*ahead->link) strcpy(entry->link, ahead->link);
    else copy_text(entry->link, text + 157, strnlen(text + 157, 100));
}

/* The next entry; false: the archive is over. */
static bool next(struct entry *entry) {
    struct ahead ahead = {0};
    for (;;) {
        uint8_t block[BLOCK];
        take(block, BLOCK);
        if (is_zero(block)) return false;
        check(block);
        int64_t size = number(block + 124, 12);
        char type = (char)block[156];
        if (size < 0) task_fail(TASK_FAILED, "a size in the archive is negative");
        if (type == 'L' || type == 'K') {
            size_t length = strnlen((char *)piece, take_extension((uint64_t)size));
            copy_text(type == 'L' ? ahead.name : ahead.link, (char *)piece, length);
        } else if (type == 'x') {
            take_pax(&ahead, (uint64_t)size);
        } else if (type == 'g') {
            skip((uint64_t)size + padding((uint64_t)size));
        } else {
            parse(block, &ahead, entry);
            return true;
        }
    }
}

/* ``text`` without "", "." and leading slashes in ``clean``; ".." is refused. */
static void normalise(const char *text, char *clean) {
    *clean = 0;
    for (const char *end; *text; text = *end ? end + 1 : end) {
        end = strchrnul(text, '/');
        size_t length = (size_t)(end - text);
        if (!length || (length == 1 && *text == '.')) continue;
        if (length == 2 && !strncmp(text, "..", 2)) task_fail(TASK_FAILED, "a name in the archive leads out of it");
        if (length > NAME_MAX) task_fail(TASK_FAILED, "a name in the archive is too long");
        if (*clean) strcat(clean, "/");
        strncat(clean, text, length);
    }
}

/* Where an entry of the archive goes, its directories made; "" for the target itself, which is one. */
static void place(const char *text, char *path, bool make) {
    char clean[PATH_MAX];
    normalise(text, clean);
    const char *rest = clean;
    if (!*clean && !into) {
        if (mkdir(target, 0755) < 0) task_fail(errno == ENOENT ? TASK_NOT_FOUND : TASK_FAILED, "%.200s: %s", target, strerror(errno));
        into = made = true;
    }
    if (!into) {
        rest = strchrnul(clean, '/');
        size_t length = (size_t)(rest - clean);
        if (!*top) memcpy(top, clean, length);
        if (strlen(top) != length || strncmp(top, clean, length))
            task_fail(TASK_NOT_FOUND, "%.200s is no directory, and the archive has several things", target);
    }
    if (strlen(target) + strlen(rest) + 2 > PATH_MAX) task_fail(TASK_FAILED, "a name in the archive is too long");
    size_t base = strlen(strcpy(path, target));
    if (into && *rest) strcat(path, "/");
    strcat(path, rest);
    for (char *slash = make ? strchr(path + base + 1, '/') : NULL; slash && base < strlen(path); slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(path, 0755) < 0 && errno != EEXIST) task_fail(TASK_FAILED, "%.200s: %s", path, strerror(errno));
        *slash = '/';
    }
}

static void refuse(const char *path) {
    int code = errno == ENOSPC || errno == EDQUOT ? TASK_NO_SPACE : errno == ENOENT ? TASK_NOT_FOUND : TASK_FAILED;
    task_fail(code, "%.200s: %s", path, strerror(errno));
}

static void receive(int fd, uint64_t size, const char *path) {
    for (uint64_t left = size; left;) {
        size_t part = left < PIECE ? left : PIECE;
        take(piece, part);
        for (size_t done = 0; done < part;) {
            ssize_t put = write(fd, piece + done, part - done);
            if (put < 0) refuse(path);
            done += (size_t)put;
        }
        left -= part;
    }
    skip(padding(size));
}

static void own(int fd, const struct entry *entry, const char *path) {
    struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, {.tv_sec = entry->mtime}};
    if (fchown(fd, entry->uid, entry->gid) < 0 || fchmod(fd, entry->mode) < 0) refuse(path);
    futimens(fd, times);
}

/* Without a name until it is whole, where the filesystem can: what is killed meanwhile leaves nothing. */
static void take_file(const struct entry *entry, const char *path) {
    char parent[PATH_MAX], temporary[PATH_MAX + 32], self[40];
    strcpy(parent, path);
    *(strrchr(parent, '/') + 1) = 0;
    snprintf(temporary, sizeof temporary, "%s.castoff-%d", parent, getpid());
    unlink(temporary);
    int fd = open(parent, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    bool nameless = fd >= 0;
    if (!nameless) fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) refuse(path);
    receive(fd, entry->size, path);
    own(fd, entry, path);
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    if (nameless && linkat(AT_FDCWD, self, AT_FDCWD, temporary, AT_SYMLINK_FOLLOW) < 0) refuse(path);
    if (rename(temporary, path) < 0) {
        int error = errno;
        unlink(temporary);
        errno = error;
        refuse(path);
    }
    close(fd);
}

static void take_directory(const struct entry *entry, const char *path) {
    if (mkdir(path, 0700) < 0 && errno != EEXIST) refuse(path);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) refuse(path);
    if (!into || made || strcmp(path, target)) own(fd, entry, path); /* the target stays as it was */
    close(fd);
}

static void take_link(const struct entry *entry, const char *path) {
    char other[PATH_MAX];
    if (entry->type == '1') place(entry->link, other, false);
    unlink(path);
    if (entry->type == '1' ? link(other, path) < 0 : symlink(entry->link, path) < 0) refuse(path);
    if (entry->type == '2' && lchown(path, entry->uid, entry->gid) < 0) refuse(path);
}

static void take_entry(const struct entry *entry) {
    char path[PATH_MAX];
    place(entry->name, path, true);
    if (entry->type == '0' || entry->type == '7') {
        take_file(entry, path);
        return;
    }
    if (entry->type == '5') take_directory(entry, path);
    else if (entry->type == '1' || entry->type == '2') take_link(entry, path);
    else task_fail(TASK_FAILED, "%.200s: only files, directories and links are taken", entry->name);
    if (entry->type == '5') skip(entry->size + padding(entry->size));
}

void files_take(const char *path, const char *unused) {
    (void)unused;
    static char clean[PATH_MAX];
    static struct entry entry;
    struct stat st;
    size_t length = strlen(path);
    if (*path != '/' || length >= sizeof clean) task_fail(TASK_FAILED, "%.200s is not an absolute path", path);
    memcpy(clean, path, length + 1);
    while (length > 1 && clean[length - 1] == '/') clean[--length] = 0;
    umask(0);
    target = clean;
    into = stat(target, &st) == 0 && S_ISDIR(st.st_mode);
    if (!into && path[strlen(path) - 1] == '/') task_fail(TASK_NOT_FOUND, "%.200s: no such directory", path);
    if (into && length == 1) target = ""; /* the root: names follow the slash */
    while (next(&entry)) take_entry(&entry);
    while (read(0, piece, PIECE) > 0) continue; /* tar fills its last record up */
}
