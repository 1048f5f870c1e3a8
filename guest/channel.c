/* The two channels to the host, and the frames on them (docs/formats.md).
 *
 * Channel 0 carries the machine's command, channel 1 lets a second client stop it or execute beside it; either carries
 * executed commands of its own. What is still to be said follows from the sessions' state, so nothing is queued, and a
 * client that comes back after its connection broke is told everything again that it had not acknowledged.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum host_frame {
    HOST_PADDING = 0,
    HOST_HELLO = 1,
    HOST_DATA = 2,
    HOST_END = 3,
    HOST_ACKNOWLEDGE = 4,
    HOST_SIGNAL = 5,
    HOST_RESIZE = 6,
    HOST_SETTINGS = 7,
    HOST_START = 8,
    HOST_CLOSE = 9,
    HOST_SHUTDOWN = 10,
    HOST_CLOCK = 11,
};

enum guest_frame {
    GUEST_WELCOME = 16,
    GUEST_READY = 17,
    GUEST_DATA = 18,
    GUEST_END = 19,
    GUEST_ACKNOWLEDGE = 20,
    GUEST_EXIT = 21,
    GUEST_TOLD = 22,
};

enum { VERSION = 1, FRAME_END = 0xA5, VSOCK_PORT = 1024, NONCE = 16, REFUSED = 16 };

/* musl has no linux/vm_sockets.h */
struct sockaddr_vsock {
    sa_family_t family;
    uint16_t reserved;
    uint32_t port, cid;
    uint8_t zero[4];
};

struct channel {
    int fd, listener;
    bool greeted; /* a client said hello: it may be told things */
    bool welcome_pending;
    bool gone; /* the host closed its end of a virtio port: there is nothing to poll until that changes */
    uint8_t nonce[NONCE];
    uint8_t in[HOST_FRAME];
    size_t in_size;
    uint8_t out[GUEST_FRAME];
    size_t out_size, out_sent;
    int turn; /* whose stream is next */
    uint16_t refused[REFUSED];
    size_t refused_count;
};

static struct channel channels[CHANNELS];
static bool by_vsock;
static uint64_t opened_ns;

void channel_configure(const char *kind) {
    for (int i = 0; i < CHANNELS; i++) channels[i].fd = channels[i].listener = -1;
    by_vsock = !strcmp(kind, "vsock");
    opened_ns = now_ns();
}

static int open_listener(int number) {
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_vsock address = {.family = AF_VSOCK, .port = VSOCK_PORT + (uint32_t)number, .cid = (uint32_t)-1};
    if (fd < 0) return -1;
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 4) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* A virtio port appears some time after its driver was loaded. It is opened once and for all: a message that is under way
 * while the port is closed is lost. SIGIO tells that the host's end was opened or closed. */
static int open_port(int number) {
    char path[32];
    snprintf(path, sizeof path, "/dev/vport0p%d", number + 1);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return -1;
    if (fcntl(fd, F_SETOWN, getpid()) < 0 || fcntl(fd, F_SETFL, O_NONBLOCK | O_ASYNC) < 0)
        say("channel %d: %s", number, strerror(errno));
    return fd;
}

static bool is_open(const struct channel *c) { return by_vsock ? c->listener >= 0 : c->fd >= 0; }

static void try_open(void) {
    for (int i = 0; i < CHANNELS; i++) {
        struct channel *c = &channels[i];
        if (is_open(c)) continue;
        if (by_vsock) c->listener = open_listener(i);
        else c->fd = open_port(i);
    }
}

/* Until the channels are open they are tried again: often at first, then now and then. */
int channel_timeout_ms(void) {
    for (int i = 0; i < CHANNELS; i++)
        if (!is_open(&channels[i])) return now_ns() - opened_ns < 5000000000ull ? 1 : 1000;
    return -1;
}

static void forget_client(struct channel *c) {
    c->greeted = c->welcome_pending = false;
    c->in_size = c->out_size = c->out_sent = 0;
    c->refused_count = 0;
    if (by_vsock && c->fd >= 0) {
        close(c->fd);
        c->fd = -1;
    }
}

/* SIGIO: a host that was gone may be back. */
void channel_changed(void) {
    for (int i = 0; i < CHANNELS; i++) channels[i].gone = false;
}

bool channel_has_client(int channel) { return channels[channel].greeted && !channels[channel].gone; }

/* --- frames to the host ------------------------------------------------------------------------------------------ */

static uint8_t *frame(struct channel *c, int type, int stream, uint16_t session, size_t length) {
    c->out[0] = (uint8_t)type;
    c->out[1] = (uint8_t)stream;
    put16(c->out + 2, session);
    put32(c->out + 4, (uint32_t)length);
    c->out_size = FRAME_HEADER + length;
    c->out_sent = 0;
    return c->out + FRAME_HEADER;
}

static void frame_welcome(struct channel *c) {
    uint8_t *payload = frame(c, GUEST_WELCOME, 0, 0, 8 + NONCE + 4);
    memcpy(payload, "castoff\n", 8);
    memcpy(payload + 8, c->nonce, NONCE);
    put32(payload + 8 + NONCE, VERSION);
    c->welcome_pending = false;
}

static void frame_exit(struct channel *c, uint16_t session, int32_t code, int32_t signal, bool oom, const char *message) {
    size_t length = strlen(message);
    uint8_t *payload = frame(c, GUEST_EXIT, 0, session, 12 + length);
    put32(payload, (uint32_t)code);
    put32(payload + 4, (uint32_t)signal);
    put32(payload + 8, oom);
    memcpy(payload + 12, message, length);
}

static bool frame_state(struct channel *c, struct session *s) {
    if (s->ready && !s->ready_sent) {
        uint8_t *payload = frame(c, GUEST_READY, 0, s->id, 24);
        put64(payload, init_started_ns);
        put64(payload + 8, drivers_ns);
        put64(payload + 16, s->exec_ns);
        s->ready_sent = true;
    } else if (s->told && !s->told_sent) {
        frame(c, GUEST_TOLD, 0, s->id, 0);
        s->told_sent = true;
    } else if (s->in.ack_pending) {
        uint64_t given = s->in.received - s->in.added; /* of the host's bytes */
        put64(frame(c, GUEST_ACKNOWLEDGE, 0, s->id, 8), s->in.written < given ? s->in.written : given);
        s->in.ack_pending = false;
    } else if (s->state == SESSION_EXITED && s->out[0].eof_sent && s->out[1].eof_sent && !s->exit_sent) {
        frame_exit(c, s->id, s->code, s->signal, s->oom, s->message);
        s->exit_sent = true;
    } else {
        return false;
    }
    return true;
}

static bool frame_output(struct channel *c, struct session *s, int stream) {
    struct output *out = &s->out[stream];
    size_t size = (size_t)(out->head - out->sent), at = out->sent & (OUTPUT_RING - 1);
    if (size == 0) {
        if (!out->eof || out->eof_sent) return false;
        put64(frame(c, GUEST_END, stream + 1, s->id, 8), out->head);
        out->eof_sent = true;
        return true;
    }
    if (size > GUEST_FRAME - FRAME_HEADER - 8) size = GUEST_FRAME - FRAME_HEADER - 8;
    if (size > OUTPUT_RING - at) size = OUTPUT_RING - at;
    uint8_t *payload = frame(c, GUEST_DATA, stream + 1, s->id, 8 + size);
    put64(payload, out->sent);
    memcpy(payload + 8, out->ring + at, size);
    out->sent += size;
    return true;
}

/* What is to be said next; false: nothing. Small news first, then the streams in turn. */
static bool frame_next(struct channel *c) {
    int number = (int)(c - channels);
    if (!c->greeted) return false;
    if (c->welcome_pending) {
        frame_welcome(c);
        return true;
    }
    if (c->refused_count) {
        frame_exit(c, c->refused[--c->refused_count], EXIT_RUNTIME, 0, false, "too many commands are executed at once");
        return true;
    }
    for (struct session *s = sessions; s < sessions + MAX_SESSIONS; s++)
        if (s->state >= SESSION_RUNNING && s->channel == number && frame_state(c, s)) return true;
    for (int i = 0; i < 2 * MAX_SESSIONS; i++) {
        int turn = (c->turn + i) % (2 * MAX_SESSIONS);
        struct session *s = &sessions[turn / 2];
        if (s->state >= SESSION_RUNNING && s->channel == number && frame_output(c, s, turn % 2)) {
            c->turn = turn + 1;
            return true;
        }
    }
    return false;
}

static void write_frames(struct channel *c) {
    while (c->fd >= 0 && (c->out_sent < c->out_size || frame_next(c))) {
        ssize_t put = write(c->fd, c->out + c->out_sent, c->out_size - c->out_sent);
        if (put < 0 && errno != EAGAIN && errno != EINTR) forget_client(c);
        if (put <= 0) return;
        c->out_sent += (size_t)put;
    }
}

/* --- frames from the host ---------------------------------------------------------------------------------------- */

/* A new client: it is told everything that its predecessor did not acknowledge. What that one executed ends. */
static void greet(struct channel *c, const uint8_t *nonce) {
    int number = (int)(c - channels);
    memcpy(c->nonce, nonce, NONCE);
    c->greeted = c->welcome_pending = true;
    c->out_size = c->out_sent = c->refused_count = 0;
    for (struct session *s = sessions; s < sessions + MAX_SESSIONS; s++) {
        if (s->state == SESSION_FREE || s->channel != number) continue;
        if (s->id != 0) {
            session_kill(s);
            session_free(s);
            continue;
        }
        s->ready_sent = s->told_sent = s->exit_sent = false;
        s->in.ack_pending = true;
        for (int i = 0; i < 2; i++) {
            s->out[i].sent = s->out[i].acked;
            s->out[i].eof_sent = false;
        }
    }
}

static void gather(struct channel *c, uint16_t id, const uint8_t *data, size_t size) {
    struct session *s = session_find((int)(c - channels), id);
    if (!s && id != 0) s = session_new((int)(c - channels), id);
    if (!s || s->state != SESSION_GATHERING || s->gathered_size + size > MAX_SETTINGS) return;
    uint8_t *grown = realloc(s->gathered, s->gathered_size + size + 1);
    if (!grown) return;
    memcpy(grown + s->gathered_size, data, size);
    s->gathered = grown;
    s->gathered_size += size;
}

static void start(struct channel *c, uint16_t id) {
    struct session *s = session_find((int)(c - channels), id);
    if (!s) {
        if (c->refused_count < REFUSED) c->refused[c->refused_count++] = id;
        return;
    }
    if (s->state != SESSION_GATHERING) return;
    uint8_t *data = s->gathered;
    s->gathered = NULL;
    if (!data || settings_parse(&s->settings, data, s->gathered_size) < 0 || s->settings.other_count)
        session_fail(s, EXIT_RUNTIME, "broken settings");
    else session_start(s);
}

static void acknowledge(struct session *s, int stream, uint64_t offset) {
    if (stream < 1 || stream > 2) return;
    struct output *out = &s->out[stream - 1];
    if (offset > out->acked && offset <= out->sent) out->acked = offset;
}

static void take_session_frame(struct session *s, int type, int stream, const uint8_t *payload, size_t length) {
    if (type == HOST_DATA && length > 8) session_input(s, get64(payload), payload + 8, length - 8);
    if (type == HOST_END) session_input_end(s);
    if (type == HOST_ACKNOWLEDGE && length == 8) acknowledge(s, stream, get64(payload));
    if (type == HOST_SIGNAL && length == 4) session_signal(s, (int)get32(payload));
    if (type == HOST_RESIZE && length == 4) session_resize(s, get16(payload), get16(payload + 2));
    if (type == HOST_CLOSE) {
        if (s->id == 0) s->closed = s->state == SESSION_EXITED;
        else if (s->state == SESSION_EXITED) session_free(s);
    }
}

static void take_frame(struct channel *c, const uint8_t *bytes, size_t length) {
    int type = bytes[0];
    uint16_t id = get16(bytes + 2);
    const uint8_t *payload = bytes + FRAME_HEADER;
    if (type == HOST_HELLO && length == NONCE) greet(c, payload);
    else if (!c->greeted) return;
    else if (type == HOST_SETTINGS) gather(c, id, payload, length);
    else if (type == HOST_START) start(c, id);
    else if (type == HOST_SHUTDOWN && length == 4) request_shutdown(get32(payload));
    else if (type == HOST_CLOCK && length == 8) set_clock(get64(payload));
    else {
        struct session *s = session_find((int)(c - channels), id);
        if (s && s->state >= SESSION_RUNNING) take_session_frame(s, type, bytes[1], payload, length);
    }
}

/* Takes whole frames off the buffer. A frame without its end mark is the rest of a client's that died in the middle of it,
 * filled up by its successor's padding: it is dropped. */
static void take_frames(struct channel *c) {
    size_t at = 0;
    while (at < c->in_size) {
        if (c->in[at] == HOST_PADDING) {
            at++;
            continue;
        }
        if (c->in_size - at < FRAME_HEADER) break;
        size_t length = get32(c->in + at + 4);
        if (length > HOST_FRAME - FRAME_HEADER - 1) {
            say("channel: a frame of %zu bytes", length);
            at++; /* look for the next frame */
            continue;
        }
        if (c->in_size - at < FRAME_HEADER + length + 1) break;
        if (c->in[at + FRAME_HEADER + length] == FRAME_END) take_frame(c, c->in + at, length);
        at += FRAME_HEADER + length + 1;
    }
    memmove(c->in, c->in + at, c->in_size - at);
    c->in_size -= at;
}

static void read_frames(struct channel *c) {
    while (c->fd >= 0) {
        ssize_t got = read(c->fd, c->in + c->in_size, sizeof c->in - c->in_size);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got <= 0) {
            /* Of a port, 0 says that the host's end is closed, or that the driver was not yet told that it is open: then data
             * may have come before. Whoever opens it next says hello, which is when its predecessor is forgotten. */
            if (by_vsock) forget_client(c);
            c->gone = true;
            return;
        }
        c->in_size += (size_t)got;
        take_frames(c);
    }
}

/* --- polling ----------------------------------------------------------------------------------------------------- */

size_t channel_poll(struct pollfd *polled) {
    size_t count = 0;
    try_open();
    for (int i = 0; i < CHANNELS; i++) {
        struct channel *c = &channels[i];
        if (c->listener >= 0) polled[count++] = (struct pollfd){.fd = c->listener, .events = POLLIN};
        if (c->fd < 0 || c->gone) continue;
        bool writes = c->out_sent < c->out_size || frame_next(c);
        polled[count++] = (struct pollfd){.fd = c->fd, .events = (short)(POLLIN | (writes ? POLLOUT : 0))};
    }
    return count;
}

static void accept_client(struct channel *c) {
    int fd = accept4(c->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    forget_client(c);
    c->fd = fd;
    c->gone = false;
}

void channel_serve(const struct pollfd *polled, size_t count) {
    for (const struct pollfd *p = polled; p < polled + count; p++)
        for (int i = 0; i < CHANNELS; i++) {
            struct channel *c = &channels[i];
            if (p->fd == c->listener && p->revents) accept_client(c);
            else if (p->fd == c->fd && p->revents) {
                read_frames(c);
                write_frames(c);
            }
        }
}
