/* How the machine's command tells that it is ready before it says anything: it, or anything it starts, runs /dev/castoff/ready.
 *
 * That program is init itself, in another process; it writes into a FIFO beside it, which init reads. Both lie in /dev, which is
 * no part of the image, and may be used by whom the command runs as. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

static const char program[] = "/dev/castoff/ready", fifo[] = "/dev/castoff/fifo";

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
    if (mkfifo(fifo, 0622) == 0 && chmod(fifo, 0622) == 0 && copy_self()) fd = open(fifo, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) say("%s: %s", program, strerror(errno));
    return fd;
}

/* What was told counts once, however often. */
void ready_read(int fd, struct session *command) {
    char told[512];
    while (read(fd, told, sizeof told) > 0) command->told = true;
}

/* The program. */
int ready_tell(void) {
    int fd = open(fifo, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0 && (write(fd, "1", 1) == 1 || errno == EAGAIN)) return 0; /* full: it was told more than enough */
    fprintf(stderr, "%s: %s\n", program, strerror(errno));
    return 1;
}
