/* What init does for the host in a child of its own, as an executed command: argv[0] names the task. So images need no programs,
 * and a filesystem or a file that hangs keeps nobody waiting but that child, which the host kills. */
#include "init.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct {
    const char *name;
    void (*perform)(const char *path, const char *more);
} tasks[] = {
    {"send-files", files_send},
    {"take-files", files_take},
    {"grow-volume", volume_grow},
    {"sync-volume", volume_sync},
};

/* Tells the host why it could not be done, and ends. */
void task_fail(int code, const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof text - 1) length = sizeof text - 1;
    _exit(write(2, text, (size_t)length) < 0 ? TASK_FAILED : code);
}

void task_perform(char **argv) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    /* Nothing is executed, so nothing closed init's descriptors: the writing end of this very input is among them. */
    if (syscall(SYS_close_range, 3u, ~0u, 0u) < 0)
        for (int fd = 3; fd < 1024; fd++) close(fd);
    if (!strcmp(argv[0], "statistics")) {
        statistics_send(argv + 1);
        _exit(0);
    }
    for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++)
        if (!strcmp(argv[0], tasks[i].name) && argv[1]) {
            tasks[i].perform(argv[1], argv[2] ? argv[2] : "");
            _exit(0);
        }
    task_fail(TASK_UNKNOWN, "no such task: %.60s", argv[0]);
}
