/* The child's way from fork to execve: everything that touches the image's files on the command's behalf. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static int report_fd;

/* Tells init why there is no command, and ends. */
static void give_up(int code, const char *format, ...) {
    char report[1 + 240] = {REPORT_FAILED};
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(report + 1, sizeof report - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof report - 2) length = sizeof report - 2;
    /* With its NUL: other processes of the same command report to the same pipe. */
    if (write(report_fd, report, (size_t)length + 2) < 0) say("cannot report: %s", strerror(errno));
    _exit(code);
}

static const char *variable(char **env, const char *name) {
    size_t length = strlen(name);
    for (; *env; env++)
        if (!strncmp(*env, name, length) && (*env)[length] == '=') return *env + length + 1;
    return NULL;
}

static char *joined(const char *name, const char *value) {
    size_t size = strlen(name) + strlen(value) + 2;
    char *text = malloc(size);
    if (!text) give_up(EXIT_RUNTIME, "out of memory");
    snprintf(text, size, "%s=%s", name, value);
    return text;
}

/* PATH with what castoff has for the command behind all that is the image's; an empty one, which finds nothing, stays so. */
static char *extended(const char *path) {
    size_t length = strlen(path), tail = strlen(TOOLS);
    bool has = length >= tail && !strcmp(path + length - tail, TOOLS);
    char *text = malloc(length + tail + 2);
    if (!text) give_up(EXIT_RUNTIME, "out of memory");
    snprintf(text, length + tail + 2, "%s%s%s", path, has || !length ? "" : ":", has || !length ? "" : TOOLS);
    return text;
}

/* The image's environment and what Docker adds to it where it is missing. */
static char **environment(const struct settings *s, const struct identity *identity) {
    size_t count = 0;
    while (s->env[count]) count++;
    char **env = calloc(count + 5, sizeof *env);
    if (!env) give_up(EXIT_RUNTIME, "out of memory");
    memcpy(env, s->env, count * sizeof *env);
    size_t at = 0;
    while (env[at] && strncmp(env[at], "PATH=", 5)) at++;
    env[at] = joined("PATH", extended(env[at] ? env[at] + 5 : DEFAULT_PATH));
    if (at == count) count++;
    if (!variable(env, "HOSTNAME") && *s->hostname) env[count++] = joined("HOSTNAME", s->hostname);
    if (!variable(env, "HOME")) env[count++] = joined("HOME", identity->home);
    if (!variable(env, "TERM") && (s->flags & FLAG_TTY)) env[count++] = joined("TERM", "xterm");
    return env;
}

static void enter_directory(const char *cwd) {
    char path[4096];
    if (snprintf(path, sizeof path, "%s%s", *cwd == '/' ? "" : "/", cwd) >= (int)sizeof path)
        give_up(EXIT_RUNTIME, "the working directory's name is too long");
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0755);
        *slash = '/';
    }
    mkdir(path, 0755);
    if (chdir(path) < 0) give_up(EXIT_RUNTIME, "working directory %.150s: %s", path, strerror(errno));
}

static void become(const struct identity *identity) {
    /* A pipe of root's could not be opened again through /dev/stdout by whom the image runs as. */
    for (int fd = 0; fd < 3; fd++) {
        struct stat st;
        if (fstat(fd, &st) == 0 && (S_ISFIFO(st.st_mode) || isatty(fd)) && fchown(fd, identity->uid, st.st_gid) < 0)
            say("cannot hand over descriptor %d: %s", fd, strerror(errno));
    }
    if (setgroups(identity->group_count, identity->groups) < 0 || setgid(identity->gid) < 0 || setuid(identity->uid) < 0)
        give_up(EXIT_RUNTIME, "cannot become user %u, group %u: %s", identity->uid, identity->gid, strerror(errno));
}

static void limit(const struct settings *s) {
    /* systemd's default for services; the kernel's own hard limit of 4096 is too low for many servers. */
    struct rlimit files = {1024, 524288};
    setrlimit(RLIMIT_NOFILE, &files);
    for (size_t i = 0; i < s->limit_count; i++) {
        struct rlimit value = {s->limits[i].soft, s->limits[i].hard};
        if (setrlimit((int)s->limits[i].resource, &value) < 0)
            give_up(EXIT_RUNTIME, "cannot set resource limit %u: %s", s->limits[i].resource, strerror(errno));
    }
}

static void refuse(const char *name, int error, bool exists) {
    if (error == EACCES) give_up(EXIT_NOT_EXECUTABLE, "exec: \"%.100s\": permission denied", name);
    if (error == ENOEXEC)
        give_up(EXIT_NOT_EXECUTABLE, "exec: \"%.100s\": exec format error (another architecture's program, or a script without #!)", name);
    if (error == ENOENT && exists)
        give_up(EXIT_NOT_FOUND, "exec: \"%.100s\": its interpreter or dynamic loader is not in the image", name);
    if (error == ENOENT || error == ENOTDIR) give_up(EXIT_NOT_FOUND, "exec: \"%.100s\": no such file or directory", name);
    give_up(EXIT_NOT_EXECUTABLE, "exec: \"%.100s\": %s", name, strerror(error));
}

static void execute_path(const char *path, char **argv, char **env) {
    execve(path, argv, env);
    int error = errno;
    struct stat st;
    bool exists = stat(path, &st) == 0;
    if (exists && S_ISDIR(st.st_mode)) give_up(EXIT_NOT_EXECUTABLE, "exec: \"%.100s\": is a directory", path);
    refuse(argv[0], error, exists);
}

static void execute(char **argv, char **env) {
    if (strchr(argv[0], '/')) execute_path(argv[0], argv, env);
    bool denied = false;
    for (const char *at = variable(env, "PATH"), *end; at; at = *end ? end + 1 : NULL) {
        char path[4096];
        struct stat st;
        end = strchrnul(at, ':');
        if (snprintf(path, sizeof path, "%.*s/%s", (int)(end - at), at, argv[0]) >= (int)sizeof path || stat(path, &st) < 0) continue;
        if (S_ISREG(st.st_mode) && access(path, X_OK) == 0) execute_path(path, argv, env);
        denied = true;
    }
    if (denied) give_up(EXIT_NOT_EXECUTABLE, "exec: \"%.100s\": found in $PATH, but not executable", argv[0]);
    give_up(EXIT_NOT_FOUND, "exec: \"%.100s\": executable file not found in $PATH", argv[0]);
}

void command_become(const struct settings *s, int report) {
    report_fd = report;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    umask(022);
    struct identity identity;
    const char *problem = identity_resolve(s->user, &identity);
    if (problem) give_up(EXIT_RUNTIME, "%s", problem);
    limit(s);
    enter_directory(s->cwd);
    char **env = environment(s, &identity);
    become(&identity);
    uint8_t clock[1 + 8] = {REPORT_CLOCK}; /* when the command took over; init learns that it did by the end of the report */
    put64(clock + 1, now_ns());
    if (write(report, clock, sizeof clock) < 0) _exit(EXIT_RUNTIME);
    execute(s->argv, env);
    _exit(EXIT_RUNTIME);
}
