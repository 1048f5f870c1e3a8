/* What is done to a volume that is mounted: its filesystem grows to a device that has grown, or is flushed. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* linux/ext4.h: the filesystem's size, in its blocks */
#define EXT4_IOC_RESIZE_FS _IOW('f', 16, uint64_t)

enum { SECTOR = 512, TRIES = 500, PAUSE_US = 20000 };

static int open_volume(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) task_fail(errno == ENOENT ? TASK_NOT_FOUND : TASK_FAILED, "%.200s: %s", path, strerror(errno));
    return fd;
}

static uint64_t device_size(dev_t device) {
    char path[64];
    size_t size;
    snprintf(path, sizeof path, "/sys/dev/block/%u:%u/size", major(device), minor(device));
    uint8_t *text = read_file(path, 64 * 1024, &size); /* a page, by what sysfs says */
    if (text) text[size] = 0;
    uint64_t sectors = text ? strtoull((char *)text, NULL, 10) : 0;
    free(text);
    return sectors * SECTOR;
}

/* The device's driver is told of its new size by an interrupt, which comes when it comes. */
void volume_grow(const char *path, const char *wanted) {
    uint64_t size = strtoull(wanted, NULL, 10);
    int fd = open_volume(path);
    struct stat st;
    struct statfs fs;
    if (fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0) task_fail(TASK_FAILED, "%.200s: %s", path, strerror(errno));
    for (int tries = 0; device_size(st.st_dev) < size; tries++) {
        if (tries == TRIES) task_fail(TASK_FAILED, "%.200s: its device has not grown", path);
        usleep(PAUSE_US);
    }
    uint64_t blocks = size / (uint64_t)fs.f_bsize;
    if (ioctl(fd, EXT4_IOC_RESIZE_FS, &blocks) < 0) task_fail(TASK_FAILED, "growing %.200s: %s", path, strerror(errno));
    if (syncfs(fd) < 0) task_fail(TASK_FAILED, "%.200s: %s", path, strerror(errno));
}

void volume_sync(const char *path, const char *unused) {
    (void)unused;
    if (syncfs(open_volume(path)) < 0) task_fail(TASK_FAILED, "%.200s: %s", path, strerror(errno));
}
