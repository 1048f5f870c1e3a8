/* castoff's guest init: the boot, top to bottom, and the loop that serves the machine's command until it ends. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

uint64_t init_started_ns;
static int console = -1; /* what the kernel opened as descriptors 0 to 2; held, since /dev comes and goes */
static uint64_t kill_at_ns;      /* when a shutdown's grace ends; 0: none was asked for */
static uint64_t waiting_since_ns; /* since when the host says nothing about the command's end */

uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The host's time: a guest that was suspended stood still while time went on. */
void set_clock(uint64_t ns) {
    struct timespec now = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    if (clock_settime(CLOCK_REALTIME, &now) < 0) say("clock: %s", strerror(errno));
}

/* To the kernel's console, in one write so that lines stay whole. */
void say(const char *format, ...) {
    char line[512] = "castoff-init: ";
    va_list arguments;
    va_start(arguments, format);
    int length = 14 + vsnprintf(line + 14, sizeof line - 15, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 2) length = sizeof line - 2;
    line[length++] = '\n';
    if (write(console, line, (size_t)length) < 0) return; /* a machine without a console is none the worse */
}

/* Asks the command to end, and ends it after ``grace_ms``. */
void request_shutdown(uint32_t grace_ms) {
    uint64_t at = now_ns() + grace_ms * 1000000ull;
    struct session *command = session_find(0, 0);
    if (!kill_at_ns && command) session_signal(command, (int)command->settings.stop_signal);
    if (!kill_at_ns || at < kill_at_ns) kill_at_ns = at;
}

static void end_machine(void) __attribute__((noreturn));
static void end_machine(void) {
    kill(-1, SIGKILL);
    for (int tries = 0; tries < 200; tries++) { /* a process in uninterruptible sleep must not keep the machine */
        pid_t pid = waitpid(-1, NULL, WNOHANG);
        if (pid < 0) break;
        if (pid == 0) usleep(10000);
    }
    rootfs_leave();
    reboot(RB_AUTOBOOT); /* every VMM that castoff drives ends on a reset */
    for (;;) pause();
}

static void reap(void) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) session_reaped(pid, status);
}

static int open_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGIO);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void read_signals(int signals) {
    struct signalfd_siginfo information[16];
    while (read(signals, information, sizeof information) > 0) continue;
    channel_changed();
    reap();
}

/* When the loop must look again though nothing happened. */
static int timeout_ms(const struct session *command) {
    int timeout = channel_timeout_ms();
    bool timed = kill_at_ns && command->state == SESSION_RUNNING;
    for (const struct session *s = sessions; s < sessions + MAX_SESSIONS; s++) timed |= s->state == SESSION_EXITED;
    return timed && (timeout < 0 || timeout > 50) ? 50 : timeout;
}

/* The command ended: has the host taken note, or has nobody been there for so long that nobody will ever ask? A client that
 * is there but slow is waited for. */
static bool is_over(const struct session *command) {
    static uint64_t progress;
    uint64_t acknowledged = command->out[0].acked + command->out[1].acked;
    if (command->closed) return true;
    bool busy = channel_has_client(0) && !command->exit_sent;
    if (!waiting_since_ns || busy || progress != acknowledged) waiting_since_ns = now_ns();
    progress = acknowledged;
    return now_ns() - waiting_since_ns > command->settings.linger_ms * 1000000ull;
}

static void serve_once(int signals, int ready, struct session *command) {
    struct pollfd polled[MAX_POLLED] = {{.fd = signals, .events = POLLIN}, {.fd = ready, .events = POLLIN}};
    size_t spans[MAX_SESSIONS], count = 2, channels = channel_poll(polled + 2);
    count += channels;
    for (int i = 0; i < MAX_SESSIONS; i++) {
        spans[i] = sessions[i].state >= SESSION_RUNNING ? session_poll(&sessions[i], polled + count) : 0;
        count += spans[i];
    }
    if (poll(polled, count, timeout_ms(command)) < 0) return;
    if (polled[0].revents) read_signals(signals);
    if (polled[1].revents) ready_read(ready, command);
    size_t at = 2 + channels;
    for (int i = 0; i < MAX_SESSIONS; at += spans[i++])
        if (sessions[i].state >= SESSION_RUNNING) session_serve(&sessions[i], polled + at, spans[i]);
    channel_serve(polled + 2, channels);
    if (kill_at_ns && command->state == SESSION_RUNNING && now_ns() >= kill_at_ns) session_signal(command, SIGKILL);
}

/* What the root filesystem did not need, while the initramfs is still in sight. */
static void load_others(const struct cmdline *cmdline) {
    modules_load(strcmp(cmdline->channel, "vsock") ? "serial" : "vsock");
    if (cmdline->prefix >= 0) modules_load("network");
    modules_forget();
}

/* In a child, beside the drivers: a card that comes up waits for RCU, the loopback some 10 to 30 ms. */
static pid_t start_loopback(void) {
    pid_t pid = fork();
    if (pid > 0) return pid;
    network_loopback();
    if (pid == 0) _exit(0);
    return -1; /* no child could be had: done here */
}

static const char *prepare(struct session *command, const struct cmdline *cmdline) {
    size_t size = 0;
    uint8_t *data = read_file("/castoff/settings", MAX_SETTINGS, &size);
    if (!data || settings_parse(&command->settings, data, size) < 0) return "the settings in the initramfs are missing or broken";
    pid_t loopback = start_loopback();
    modules_load("drive");
    const char *problem = rootfs_mount(cmdline);
    if (!problem) problem = rootfs_volumes(cmdline, &command->settings);
    load_others(cmdline); /* also where the boot failed: the host is told why */
    if (problem) return problem;
    if ((problem = rootfs_enter())) return problem;
    if (cmdline->prefix >= 0) network_up(cmdline);
    if (sethostname(command->settings.hostname, strlen(command->settings.hostname)) < 0) say("hostname: %s", strerror(errno));
    network_files(cmdline, command->settings.hostname);
    settings_write_files(&command->settings);
    if (loopback > 0) waitpid(loopback, NULL, 0); /* the command finds its network */
    return NULL;
}

int main(int count, char **words) {
    if (getpid() != 1) return ready_main(count, words);
    init_started_ns = now_ns();
    console = fcntl(2, F_DUPFD_CLOEXEC, 3);
    struct cmdline cmdline = {.prefix = -1};
    struct session *command = session_new(0, 0);
    int signals = open_signals();
    const char *problem = rootfs_early();
    if (!problem) {
        cmdline_read(&cmdline);
        problem = prepare(command, &cmdline);
    }
    channel_configure(cmdline.channel);
    int ready = problem ? -1 : ready_offer();
    if (problem) session_fail(command, EXIT_RUNTIME, problem);
    else session_start(command);
    while (command->state != SESSION_EXITED || !is_over(command)) serve_once(signals, ready, command);
    end_machine();
}
