/* castoff's guest init: PID 1 of a machine. One static program, no dependencies but the kernel.
 *
 * The story of a boot is main() in init.c, top to bottom. The host is trusted (it owns this machine's memory anyway);
 * the image is not: nothing that it holds may hang or crash PID 1, so its files are read in the child that becomes its
 * command. The byte formats (settings, frames) are in docs/formats.md and written by castoff.vmm.initramfs and .channel.
 */
#ifndef CASTOFF_INIT_H
#define CASTOFF_INIT_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    MAX_SESSIONS = 64,       /* the main command and what is executed beside it */
    MAX_POLLED = 4 * MAX_SESSIONS + 8,
    OUTPUT_RING = 256 * 1024, /* bytes of a stream that the host has not acknowledged; a power of two */
    INPUT_RING = 64 * 1024,   /* bytes of stdin that the command has not read; a power of two */
    HOST_FRAME = 4096,        /* largest frame from the host: a virtio console buffer is one page */
    GUEST_FRAME = 32 * 1024,  /* largest frame to the host: what virtio_console writes at once */
    FRAME_HEADER = 8,
    MAX_SETTINGS = 8 * 1024 * 1024,
    MAX_RLIMITS = 16,
    MAX_MOUNTS = 16,
    MAX_PROCESSES = 16, /* of the machine's command, which is one mostly */
    CHANNELS = 2,
};

/* Exit codes of the runtime itself, as Docker has them. */
enum { EXIT_RUNTIME = 125, EXIT_NOT_EXECUTABLE = 126, EXIT_NOT_FOUND = 127 };

/* What a child reports: its clock (u64) when it executes, then, if that failed, why. */
enum { REPORT_CLOCK = 'T', REPORT_FAILED = 'F' };

enum { FLAG_TTY = 1, FLAG_STDIN = 2, FLAG_PROCESSES = 4, FLAG_DIAL = 8, FLAG_TASK = 16 };

/* Exit codes of what init does for the host, castoff.vmm.guest_tasks. */
enum { TASK_FAILED = 1, TASK_NOT_FOUND = 2, TASK_NO_SPACE = 3, TASK_UNKNOWN = EXIT_NOT_FOUND };

struct limit {
    uint32_t resource;
    uint64_t soft, hard;
};

/* A volume: the role that its drive has, and where it goes. */
struct volume {
    char role[16];
    const char *path;
};

/* What to run and how; strings point into ``data``. */
struct settings {
    uint8_t *data;
    size_t size;
    char **argv, **env; /* NULL-terminated */
    const char *cwd, *user, *hostname;
    uint32_t flags, stop_signal, linger_ms;
    uint16_t rows, columns;
    struct limit limits[MAX_RLIMITS];
    size_t limit_count;
    struct volume mounts[MAX_MOUNTS];
    size_t mount_count;
    struct settings *others; /* what runs beside it as part of the same command */
    size_t other_count;
};

/* What the VMM's driver says on the kernel command line. */
struct cmdline {
    char channel[16];  /* serial or vsock */
    char drives[256];  /* roles in device order, comma separated; used where drives have no serial */
    char address[20], gateway[20], nameserver[20];
    int prefix;        /* -1: no network */
    char address6[48], gateway6[48]; /* empty: no IPv6 but what a card has by itself */
};

struct identity {
    uid_t uid;
    gid_t gid;
    gid_t groups[128];
    size_t group_count;
    char home[256];
};

/* A stream to the host. Offsets are absolute: acked <= sent <= head <= acked + OUTPUT_RING. */
struct output {
    int fd;
    uint8_t *ring;
    uint64_t head, sent, acked;
    bool eof, eof_sent;
};

struct input {
    int fd;
    uint8_t *ring;
    uint64_t received, written;
    uint64_t added;   /* bytes of them that are not the host's: a terminal's end of input */
    bool eof;         /* the host will send no more */
    bool ack_pending;
};

enum session_state { SESSION_FREE, SESSION_GATHERING, SESSION_RUNNING, SESSION_EXITED };

struct session {
    enum session_state state;
    uint16_t id;
    int channel;
    pid_t pid; /* of its first process, which has the terminal or standard input */
    pid_t others[MAX_PROCESSES];
    size_t running; /* processes that have not ended */
    bool ending; /* one has: its end is the session's */
    int master; /* of its terminal, or -1 */
    int report; /* the child tells here why it could not execute, or -1 */
    struct input in;
    struct output out[2]; /* stdout (or the terminal), stderr */
    struct settings settings;
    uint8_t *gathered; /* settings of an exec, as they come in */
    size_t gathered_size;
    char report_buffer[512];
    size_t report_size;
    uint64_t exec_ns;
    bool ready, ready_sent;
    bool told, told_sent; /* the command says that it is ready */
    int32_t code, signal;
    bool oom, exit_sent, closed;
    uint64_t exited_ns;
    char message[256];
};

/* init.c */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint64_t now_ns(void);
void set_clock(uint64_t ns);
void request_shutdown(uint32_t grace_ms);
extern uint64_t init_started_ns;

/* settings.c */
int settings_parse(struct settings *settings, uint8_t *data, size_t size);
void settings_free(struct settings *settings);
void settings_write_files(const struct settings *settings);
void cmdline_read(struct cmdline *cmdline);
uint8_t *read_file(const char *path, size_t limit, size_t *size);
bool write_file(const char *path, const char *text);
uint16_t get16(const uint8_t *bytes);
uint32_t get32(const uint8_t *bytes);
uint64_t get64(const uint8_t *bytes);
void put16(uint8_t *bytes, uint16_t value);
void put32(uint8_t *bytes, uint32_t value);
void put64(uint8_t *bytes, uint64_t value);

/* modules.c */
extern uint64_t drivers_ns;
void modules_load(const char *group);
void modules_forget(void);

/* rootfs.c */
const char *rootfs_early(void);
const char *rootfs_mount(const struct cmdline *cmdline);
const char *rootfs_volumes(const struct cmdline *cmdline, const struct settings *settings);
const char *rootfs_enter(void);
void rootfs_leave(void);

/* ready.c */
#define TOOLS "/dev/castoff/bin" /* the last directory of a command's PATH */
int ready_offer(void);
void ready_read(int fd, struct session *command);
int ready_main(int count, char **words);

/* network.c */
void network_loopback(void);
void network_up(const struct cmdline *cmdline);
const char *network_own(void);
void network_files(const struct cmdline *cmdline, const char *hostname);

/* identity.c */
const char *identity_resolve(const char *spec, struct identity *identity);

/* command.c */
void command_become(const struct settings *settings, int report) __attribute__((noreturn));

/* processes.c */
void processes_list(void) __attribute__((noreturn));

/* dial.c */
void dial_port(const struct settings *settings, int report) __attribute__((noreturn));

/* tasks.c */
void task_perform(char **argv) __attribute__((noreturn));
void task_fail(int code, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3)));

/* files_send.c, files_take.c */
void files_send(const char *path, const char *unused);
void files_take(const char *path, const char *unused);

/* statistics.c */
void statistics_send(char **paths);

/* volumes.c */
void volume_grow(const char *path, const char *wanted);
void volume_sync(const char *path, const char *unused);

/* session.c */
extern struct session sessions[MAX_SESSIONS];
struct session *session_find(int channel, uint16_t id);
struct session *session_new(int channel, uint16_t id);
void session_start(struct session *session);
void session_fail(struct session *session, int code, const char *message);
void session_signal(struct session *session, int signal);
void session_kill(struct session *session);
void session_resize(struct session *session, uint16_t rows, uint16_t columns);
void session_input(struct session *session, uint64_t offset, const uint8_t *data, size_t size);
void session_input_end(struct session *session);
void session_free(struct session *session);
void session_reaped(pid_t pid, int status);
size_t session_poll(struct session *session, struct pollfd *polled);
void session_serve(struct session *session, const struct pollfd *polled, size_t count);
bool session_drained(const struct session *session);

/* channel.c */
void channel_configure(const char *kind);
int channel_timeout_ms(void);
size_t channel_poll(struct pollfd *polled);
void channel_serve(const struct pollfd *polled, size_t count);
void channel_changed(void);
bool channel_has_client(int channel);

#endif
