/* How the machine's command tells that it is ready before it says anything: it, or anything it starts, runs `castoff ready`.
 *
 * That program is init itself, in another process; it writes into a FIFO, which init reads. All of it lies in /dev/castoff, which
 * is no part of the image, and may be used by whom the command runs as. TOOLS is the last directory of the command's PATH; who has
 * set PATH himself runs /dev/castoff/ready. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

static const char program[] = "/dev/castoff/ready", fifo[] = "/dev/castoff/fifo", tool[] = TOOLS "/castoff";

static bool copy_self(void) {
    int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), to = open(program, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
    struct stat st;
    bool copied = from >= 0 && to >= 0 && fstat(from, &st) == 0 && sendfile(to, from, NULL, (size_t)st.st_size) == st.st_size;
    if (from >= 0) close(from);
    if (to >= 0) close(to);
    return copied;
}

/* The FIFO's descriptor, or -1: then nobody can tell, and the command's first word has to do. Held for writing too, so that it
 * never ends. */
int ready_offer(void) {
    int fd = -1;
    mkdir("/dev/castoff", 0755);
    mkdir(TOOLS, 0755);
    if (mkfifo(fifo, 0622) == 0 && chmod(fifo, 0622) == 0 && copy_self() && symlink(program, tool) == 0)
        fd = open(fifo, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) say("%s: %s", program, strerror(errno));
    return fd;
}

/* What was told counts once, however often. */
void ready_read(int fd, struct session *command) {
    char told[512];
    while (read(fd, told, sizeof told) > 0) command->told = true;
}

static int tell(void) {
    int fd = open(fifo, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0 && (write(fd, "1", 1) == 1 || errno == EAGAIN)) return 0; /* full: it was told more than enough */
    fprintf(stderr, "%s: %s\n", program, strerror(errno));
    return 1;
}

/* The program, by either of its names. */
int ready_main(int count, char **words) {
    const char *name = count ? strrchr(words[0], '/') : NULL;
    name = name ? name + 1 : count ? words[0] : "";
    if (strcmp(name, "castoff") || (count == 2 && !strcmp(words[1], "ready"))) return tell();
    fputs("usage: castoff ready\n\nTells the host that this machine does what it was started for.\n", stderr);
    return 2;
}
