/* Kernel modules: /castoff/modules lists "<group> <file>" in the order in which dependencies ask for them. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *list;
uint64_t drivers_ns; /* the kernel's work: drivers and root, for which one that has both built in needs no init */

static void load(const char *file) {
    char path[128];
    uint64_t began = now_ns();
    snprintf(path, sizeof path, "/castoff/%s", file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)) say("module %s: %s", file, strerror(errno));
    if (fd >= 0) close(fd);
    unlink(path); /* the initramfs is memory that the machine pays for */
    drivers_ns += now_ns() - began;
}

/* Loads the modules of ``group``, and only once. */
void modules_load(const char *group) {
    size_t size = 0;
    if (!list) {
        list = (char *)read_file("/castoff/modules", 64 * 1024, &size);
        if (!list) return;
        list[size] = 0;
    }
    size_t length = strlen(group);
    for (char *line = list; *line;) {
        char *end = strchrnul(line, '\n');
        if (!strncmp(line, group, length) && line[length] == ' ') {
            char file[96];
            snprintf(file, sizeof file, "%.*s", (int)(end - line - (ssize_t)length - 1), line + length + 1);
            load(file);
            *line = '-';
        }
        line = *end ? end + 1 : end;
    }
}

/* Frees what was not loaded. */
void modules_forget(void) {
    for (char *line = list; line && *line;) {
        char *end = strchrnul(line, '\n'), *name = strchr(line, ' ');
        if (name && name < end && *line != '-') {
            char path[128];
            snprintf(path, sizeof path, "/castoff/%.*s", (int)(end - name - 1), name + 1);
            unlink(path);
        }
        line = *end ? end + 1 : end;
    }
    free(list);
    list = NULL;
    unlink("/castoff/modules");
    unlink("/castoff/settings");
    unlink("/init");
}
