/* Sessions: a process, its streams, and what the host is still to be told of it. Session 0 is the machine's command. */
#include "init.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

/* How long a stream may stay open after its process ended: something it left behind holds it. */
static const uint64_t STRAGGLERS_NS = 300 * 1000000ull;
/* How long a machine's processes may take to end after the first of them has. */
enum { OTHERS_MS = 5000 };

struct session sessions[MAX_SESSIONS];
static uint64_t killed_for_memory; /* oom_kill of /proc/vmstat, when last looked at */

struct session *session_find(int channel, uint16_t id) {
    for (struct session *s = sessions; s < sessions + MAX_SESSIONS; s++)
        if (s->state != SESSION_FREE && s->id == id && (s->channel == channel || id == 0)) return s;
    return NULL;
}

struct session *session_new(int channel, uint16_t id) {
    for (struct session *s = sessions; s < sessions + MAX_SESSIONS; s++)
        if (s->state == SESSION_FREE) {
            *s = (struct session){.state = SESSION_GATHERING, .id = id, .channel = channel, .master = -1, .report = -1,
                                  .in.fd = -1, .out = {{.fd = -1}, {.fd = -1}}};
            return s;
        }
    return NULL;
}

static uint8_t *ring_new(size_t size) {
    void *ring = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return ring == MAP_FAILED ? NULL : ring;
}

static void close_fd(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

void session_free(struct session *s) {
    close_fd(&s->in.fd);
    close_fd(&s->out[0].fd);
    close_fd(&s->out[1].fd);
    close_fd(&s->master);
    close_fd(&s->report);
    if (s->in.ring) munmap(s->in.ring, INPUT_RING);
    for (int i = 0; i < 2; i++)
        if (s->out[i].ring) munmap(s->out[i].ring, OUTPUT_RING);
    settings_free(&s->settings);
    free(s->gathered);
    *s = (struct session){.state = SESSION_FREE};
}

static void reached_end(struct output *out) {
    out->eof = true;
    close_fd(&out->fd);
}

/* There is no command: it ends as if it had ended with ``code``. */
void session_fail(struct session *s, int code, const char *message) {
    s->state = SESSION_EXITED;
    s->code = code;
    s->exited_ns = now_ns();
    snprintf(s->message, sizeof s->message, "%s", message);
    say("%s", s->message);
    for (int i = 0; i < 2; i++) reached_end(&s->out[i]);
    close_fd(&s->in.fd);
}

static uint64_t memory_kills(void) {
    char text[8192];
    int fd = open("/proc/vmstat", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    if (got < 0) return killed_for_memory;
    text[got] = 0;
    const char *line = strstr(text, "\noom_kill ");
    return line ? strtoull(line + 10, NULL, 10) : killed_for_memory;
}

struct pipes {
    int in[2], out[2], err[2], report[2];
};

static int open_terminal(struct session *s, struct pipes *p) {
    int number, unlock = 0;
    char slave[32];
    s->master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (s->master < 0 || ioctl(s->master, TIOCSPTLCK, &unlock) < 0 || ioctl(s->master, TIOCGPTN, &number) < 0) return -1;
    snprintf(slave, sizeof slave, "/dev/pts/%d", number);
    p->in[0] = open(slave, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (p->in[0] < 0) return -1;
    session_resize(s, s->settings.rows, s->settings.columns);
    s->out[0].fd = fcntl(s->master, F_DUPFD_CLOEXEC, 3);
    s->in.fd = fcntl(s->master, F_DUPFD_CLOEXEC, 3);
    s->out[1].eof = true;
    return s->out[0].fd < 0 || s->in.fd < 0 ? -1 : 0;
}

static int open_pipes(struct session *s, struct pipes *p) {
    if (pipe2(p->out, O_CLOEXEC) < 0 || pipe2(p->err, O_CLOEXEC) < 0) return -1;
    if (s->settings.flags & FLAG_STDIN) {
        if (pipe2(p->in, O_CLOEXEC) < 0) return -1;
        s->in.fd = p->in[1];
        fcntl(s->in.fd, F_SETFL, O_NONBLOCK);
    } else {
        p->in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
    s->out[0].fd = p->out[0];
    s->out[1].fd = p->err[0];
    fcntl(s->out[0].fd, F_SETFL, O_NONBLOCK);
    fcntl(s->out[1].fd, F_SETFL, O_NONBLOCK);
    return p->in[0] < 0 ? -1 : 0;
}

static void run_child(const struct settings *settings, const struct pipes *p, bool tty) {
    setsid();
    if (tty) ioctl(p->in[0], TIOCSCTTY, 0);
    dup2(p->in[0], 0);
    dup2(tty ? p->in[0] : p->out[1], 1);
    dup2(tty ? p->in[0] : p->err[1], 2);
    if (settings->flags & FLAG_PROCESSES) processes_list();
    if (settings->flags & FLAG_DIAL) dial_port(settings, p->report[1]);
    if (settings->flags & FLAG_TASK) task_perform(settings->argv);
    command_become(settings, p->report[1]);
}

/* The processes beside the first: the same streams, nothing to read. */
static void start_others(struct session *s, struct pipes *p) {
    if (!s->settings.other_count) return;
    if (p->in[0] >= 0) close(p->in[0]);
    p->in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    for (size_t i = 0; i < s->settings.other_count; i++) {
        s->others[i] = fork();
        if (s->others[i] == 0) run_child(&s->settings.others[i], p, false);
        if (s->others[i] < 0) {
            snprintf(s->message, sizeof s->message, "cannot fork: %s", strerror(errno));
            session_signal(s, SIGKILL);
            return;
        }
        s->running++;
    }
}

void session_start(struct session *s) {
    struct pipes p = {{-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}};
    bool tty = s->settings.flags & FLAG_TTY;
    s->in.ring = ring_new(INPUT_RING);
    for (int i = 0; i < 2; i++) s->out[i].ring = ring_new(OUTPUT_RING);
    s->in.ack_pending = true;
    if (!s->in.ring || !s->out[0].ring || !s->out[1].ring || pipe2(p.report, O_CLOEXEC) < 0 ||
        (tty ? open_terminal(s, &p) : open_pipes(s, &p)) < 0) {
        char message[128];
        snprintf(message, sizeof message, "cannot open the command's streams: %s", strerror(errno));
        session_fail(s, EXIT_RUNTIME, message);
    } else {
        if (s->id == 0) killed_for_memory = memory_kills();
        s->pid = fork();
        if (s->pid == 0) run_child(&s->settings, &p, tty);
        s->report = p.report[0];
        p.report[0] = -1;
        s->state = SESSION_RUNNING;
        s->running = 1;
        if (s->pid < 0) session_fail(s, EXIT_RUNTIME, "cannot fork");
        else start_others(s, &p);
    }
    close_fd(&p.in[0]);
    close_fd(&p.out[1]);
    close_fd(&p.err[1]);
    close_fd(&p.report[0]);
    close_fd(&p.report[1]);
}

/* Ends a command executed beside the machine's own, with all that it has started and that has not made itself a session of its
 * own: nobody waits for any of it. Job control makes groups in a session, so the group alone is not all. */
void session_kill(struct session *s) {
    if (s->state != SESSION_RUNNING || s->pid <= 0) return;
    kill(-s->pid, SIGKILL);
    DIR *proc = opendir("/proc"); /* whatever the image has there: only numbers are read from it */
    for (struct dirent *entry; proc && (entry = readdir(proc));) {
        pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
        if (pid > 1 && getsid(pid) == s->pid) kill(pid, SIGKILL);
    }
    if (proc) closedir(proc);
}

/* A terminal's signals reach everybody in front of it, others the process alone (as `docker kill` has it). */
void session_signal(struct session *s, int signal) {
    if (s->state != SESSION_RUNNING || signal < 1 || signal > 64) return;
    if (signal == SIGKILL && s->id != 0) return session_kill(s);
    bool group = signal == SIGINT || signal == SIGQUIT || signal == SIGTSTP || signal == SIGCONT || signal == SIGWINCH;
    if (s->pid > 0 && (!group || kill(-s->pid, signal) < 0)) kill(s->pid, signal);
    for (size_t i = 0; i < s->settings.other_count; i++)
        if (s->others[i] > 0 && (!group || kill(-s->others[i], signal) < 0)) kill(s->others[i], signal);
}

void session_resize(struct session *s, uint16_t rows, uint16_t columns) {
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    if (s->master >= 0 && rows && columns) ioctl(s->master, TIOCSWINSZ, &size);
}

/* The host sends within the window only; what it sends again after a broken connection is skipped. */
void session_input(struct session *s, uint64_t offset, const uint8_t *data, size_t size) {
    struct input *in = &s->in;
    if (!in->ring || offset > in->received || offset + size <= in->received) return;
    data += in->received - offset;
    size -= in->received - offset;
    if (size > INPUT_RING - (in->received - in->written)) return;
    for (size_t i = 0; i < size; i++) in->ring[(in->received + i) & (INPUT_RING - 1)] = data[i];
    in->received += size;
}

void session_input_end(struct session *s) {
    if (s->in.eof) return;
    s->in.eof = true;
    uint8_t end = 4; /* a terminal's end of input is a character */
    if (s->master < 0) {
        /* All is written: nothing else would wake whoever closes it. */
        if (s->in.written == s->in.received) close_fd(&s->in.fd);
        return;
    }
    session_input(s, s->in.received, &end, 1);
    s->in.added = 1;
}

static void write_input(struct session *s) {
    struct input *in = &s->in;
    while (in->fd >= 0 && in->written < in->received) {
        size_t at = in->written & (INPUT_RING - 1), size = in->received - in->written;
        if (size > INPUT_RING - at) size = INPUT_RING - at;
        ssize_t put = write(in->fd, in->ring + at, size);
        if (put < 0 && (errno == EAGAIN || errno == EINTR)) break;
        if (put < 0) close_fd(&in->fd); /* nobody reads it any more */
        else in->written += (uint64_t)put, in->ack_pending = true;
    }
    if (in->fd < 0 && in->written < in->received) in->written = in->received, in->ack_pending = true;
    if (in->eof && in->written == in->received && s->master < 0) close_fd(&in->fd);
}

static void read_output(struct output *out) {
    while (out->fd >= 0) {
        size_t at = out->head & (OUTPUT_RING - 1), room = OUTPUT_RING - (size_t)(out->head - out->acked);
        if (room == 0) return;
        if (room > OUTPUT_RING - at) room = OUTPUT_RING - at;
        ssize_t got = read(out->fd, out->ring + at, room);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got <= 0) { /* EIO: a terminal that nobody has open */
            reached_end(out);
            return;
        }
        out->head += (uint64_t)got;
        if ((size_t)got < room) return;
    }
}

/* What its processes reported: clocks, as they executed, and why one could not. */
static void take_report(struct session *s) {
    size_t at = 0, executed = 0;
    while (s->report_size - at >= 9 && s->report_buffer[at] == REPORT_CLOCK) {
        uint64_t ns = get64((const uint8_t *)s->report_buffer + at + 1);
        if (ns > s->exec_ns) s->exec_ns = ns;
        at += 9, executed++;
    }
    s->report_buffer[s->report_size] = 0;
    if (at < s->report_size && s->report_buffer[at] == REPORT_FAILED) {
        snprintf(s->message, sizeof s->message, "%s", s->report_buffer + at + 1);
        say("%s", s->message);
    } else {
        s->ready = executed == 1 + s->settings.other_count;
    }
}

static void read_report(struct session *s) {
    ssize_t got = read(s->report, s->report_buffer + s->report_size, sizeof s->report_buffer - 1 - s->report_size);
    if (got > 0) {
        s->report_size += (size_t)got;
        return;
    }
    close_fd(&s->report); /* the children executed, or ended */
    take_report(s);
}

static bool is_its(struct session *s, pid_t pid) {
    if (s->state != SESSION_RUNNING) return false;
    bool its = s->pid == pid;
    if (its) s->pid = 0;
    for (size_t i = 0; i < s->settings.other_count; i++)
        if (s->others[i] == pid) its = true, s->others[i] = 0;
    return its;
}

static void take_end(struct session *s, int status) {
    s->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    s->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    uint64_t kills = memory_kills();
    s->oom = kills > killed_for_memory;
    killed_for_memory = kills;
}

/* The first process to end ends the session; the others are asked to end, too, and waited for. */
void session_reaped(pid_t pid, int status) {
    for (struct session *s = sessions; s < sessions + MAX_SESSIONS; s++) {
        if (!is_its(s, pid)) continue;
        s->running--;
        if (!s->ending) take_end(s, status);
        if (!s->ending && s->running && s->id == 0) request_shutdown(OTHERS_MS);
        s->ending = true;
        if (s->running) continue;
        s->state = SESSION_EXITED;
        s->exited_ns = now_ns();
        while (s->report >= 0) read_report(s);
        if (s->id == 0) kill(-1, SIGKILL); /* a machine lives as long as its command */
    }
}

size_t session_poll(struct session *s, struct pollfd *polled) {
    size_t count = 0;
    for (int i = 0; i < 2; i++)
        if (s->out[i].fd >= 0 && s->out[i].head - s->out[i].acked < OUTPUT_RING)
            polled[count++] = (struct pollfd){.fd = s->out[i].fd, .events = POLLIN};
    if (s->in.fd >= 0 && s->in.written < s->in.received) polled[count++] = (struct pollfd){.fd = s->in.fd, .events = POLLOUT};
    if (s->report >= 0) polled[count++] = (struct pollfd){.fd = s->report, .events = POLLIN};
    return count;
}

void session_serve(struct session *s, const struct pollfd *polled, size_t count) {
    for (const struct pollfd *p = polled; p < polled + count; p++) {
        if (!p->revents) continue;
        if (p->fd == s->report) read_report(s);
        for (int i = 0; i < 2; i++)
            if (p->fd == s->out[i].fd) read_output(&s->out[i]);
    }
    write_input(s);
    if (s->state != SESSION_EXITED) return;
    close_fd(&s->in.fd);
    for (int i = 0; i < 2; i++)
        if (s->out[i].fd >= 0 && now_ns() - s->exited_ns > STRAGGLERS_NS && s->out[i].head - s->out[i].acked < OUTPUT_RING)
            reached_end(&s->out[i]);
}

bool session_drained(const struct session *s) {
    return s->state == SESSION_EXITED && s->out[0].eof && s->out[1].eof && s->out[0].acked == s->out[0].head && s->out[1].acked == s->out[1].head;
}
