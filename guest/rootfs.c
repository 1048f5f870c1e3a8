/* The root filesystem: found, mounted, entered, and left clean. */
#include "init.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char failure[256];
static bool entered;
static int upper_fd = -1; /* root of an overlay's upper filesystem, which the new root cannot name */

static const char *fail(const char *what, const char *which) {
    snprintf(failure, sizeof failure, "%s %s: %s", what, which, strerror(errno));
    return failure;
}

/* What init itself needs while it still runs from the initramfs. */
const char *rootfs_early(void) {
    mkdir("/dev", 0755);
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/newroot", 0755);
    if (mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755") < 0 && errno != EBUSY) return fail("mounting", "/dev");
    if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "") < 0) return fail("mounting", "/proc");
    if (mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "") < 0) return fail("mounting", "/sys");
    return NULL;
}

static bool has_serial(const char *disk, const char *role) {
    char path[300], serial[32] = "";
    snprintf(path, sizeof path, "/sys/block/%s/serial", disk);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t got = read(fd, serial, sizeof serial - 1);
    close(fd);
    if (got > 0) serial[strcspn(serial, "\n")] = 0;
    return !strcmp(serial, role);
}

/* Firecracker's drives have a serial that nobody can choose, so there the order on the command line counts. */
static bool by_order(const struct cmdline *cmdline, const char *role, char *device, size_t size) {
    char roles[sizeof cmdline->drives], *rest = NULL;
    snprintf(roles, sizeof roles, "%s", cmdline->drives);
    char letter = 'a';
    for (char *word = strtok_r(roles, ",", &rest); word; word = strtok_r(NULL, ",", &rest), letter++)
        if (!strcmp(word, role)) {
            snprintf(device, size, "/dev/vd%c", letter);
            return access(device, F_OK) == 0;
        }
    return false;
}

static bool find_drive(const struct cmdline *cmdline, const char *role, char *device, size_t size) {
    bool found = false;
    DIR *disks = opendir("/sys/block");
    for (struct dirent *entry; disks && !found && (entry = readdir(disks));)
        if (entry->d_name[0] != '.' && has_serial(entry->d_name, role)) {
            snprintf(device, size, "/dev/%.40s", entry->d_name);
            found = true;
        }
    if (disks) closedir(disks);
    return found || by_order(cmdline, role, device, size);
}

/* noatime: a composed root is cloned, and each first read of a file would otherwise write to the clone. */
static const char *mount_overlay(const char *base, const char *upper) {
    mkdir("/base", 0755);
    mkdir("/upper", 0755);
    if (mount(base, "/base", "ext4", MS_RDONLY | MS_NOATIME, "noload") < 0) return fail("mounting the base drive", base);
    if (mount(upper, "/upper", "ext4", MS_NOATIME, "") < 0) return fail("mounting the upper drive", upper);
    upper_fd = open("/upper", O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct stat st;
    if (mkdir("/upper/upper", 0755) == 0 && stat("/base", &st) == 0) { /* the upper directory's attributes become the root's */
        if (chown("/upper/upper", st.st_uid, st.st_gid) < 0 || chmod("/upper/upper", st.st_mode & 07777) < 0)
            return fail("preparing the upper drive", upper);
    }
    mkdir("/upper/work", 0755);
    modules_load("overlay");
    if (mount("overlay", "/newroot", "overlay", MS_NOATIME, "lowerdir=/base,upperdir=/upper/upper,workdir=/upper/work") < 0)
        return fail("joining base and upper with", "overlayfs");
    return NULL;
}

static const char *mount_root(const struct cmdline *cmdline) {
    char root[64], base[64];
    /* Drives are there when virtio_blk has loaded; a slow VMM is given two seconds all the same. */
    for (uint64_t until = now_ns() + 2000000000ull; now_ns() < until;) {
        if (find_drive(cmdline, "root", root, sizeof root))
            return mount(root, "/newroot", "ext4", MS_NOATIME, "") < 0 ? fail("mounting the root drive", root) : NULL;
        if (find_drive(cmdline, "base", base, sizeof base) && find_drive(cmdline, "upper", root, sizeof root))
            return mount_overlay(base, root);
        usleep(5000);
    }
    errno = ENODEV;
    return fail("finding a drive that is called", "root, or base and upper");
}

const char *rootfs_mount(const struct cmdline *cmdline) {
    uint64_t began = now_ns(), before = drivers_ns; /* loading overlayfs counts itself */
    const char *problem = mount_root(cmdline);
    drivers_ns = before + now_ns() - began;
    return problem;
}

/* linux/openat2.h, which musl's headers have not. */
struct open_how {
    uint64_t flags, mode, resolve;
};
enum { RESOLVE_NO_MAGICLINKS = 0x02, RESOLVE_IN_ROOT = 0x10 };

/* A directory of the new root, whose symlinks lead nowhere else: resolved as if the root were "/" already. */
static int open_within(int root, const char *path) {
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
}

/* The same, made with its parents where it is missing; -1 with errno. ``path`` is absolute. */
static int make_within(int root, const char *path) {
    char copy[4096];
    if (strlen(path) >= sizeof copy) return errno = ENAMETOOLONG, -1;
    strcpy(copy, path);
    int at = open_within(root, "/");
    char *rest = NULL, built[sizeof copy] = "";
    for (char *name = strtok_r(copy, "/", &rest); name && at >= 0; name = strtok_r(NULL, "/", &rest)) {
        if (!strcmp(name, "..")) return close(at), errno = EINVAL, -1;
        strcat(strcat(built, "/"), name);
        if (mkdirat(at, name, 0755) < 0 && errno != EEXIST) return close(at), -1;
        close(at);
        at = open_within(root, built);
    }
    return at;
}

static const char *mount_volume(int root, const struct cmdline *cmdline, const struct volume *volume) {
    char device[64], place[40];
    bool found = false;
    for (uint64_t until = now_ns() + 2000000000ull; !(found = find_drive(cmdline, volume->role, device, sizeof device));) {
        if (now_ns() > until) return errno = ENODEV, fail("finding the drive of the volume at", volume->path);
        usleep(5000);
    }
    int target = make_within(root, volume->path);
    if (target < 0) return fail("making the directory of the volume at", volume->path);
    snprintf(place, sizeof place, "/proc/self/fd/%d", target);
    int done = mount(device, place, "ext4", MS_NOSUID | MS_NODEV | MS_NOATIME, "");
    const char *problem = done < 0 ? fail("mounting the volume at", volume->path) : NULL;
    close(target);
    return problem;
}

/* While the initramfs is in sight: its /dev, /proc and /sys are what they say, which the image's need not be. The mounts move
 * with the root. */
const char *rootfs_volumes(const struct cmdline *cmdline, const struct settings *settings) {
    if (!settings->mount_count) return NULL;
    int root = open("/newroot", O_PATH | O_DIRECTORY | O_CLOEXEC);
    const char *problem = root < 0 ? fail("opening", "the root filesystem") : NULL;
    for (size_t i = 0; i < settings->mount_count && !problem; i++) problem = mount_volume(root, cmdline, &settings->mounts[i]);
    if (root >= 0) close(root);
    return problem;
}

static void mount_there(const char *type, const char *path, unsigned long flags, const char *options) {
    mkdir(path, 0755);
    if (mount(type, path, type, flags, options) < 0) say("mounting %s: %s", path, strerror(errno));
}

/* What a container's process expects to find, as runc makes it. /run and /tmp are the image's own: a tmpfs would hide
 * the directories that packages put there. */
static void mount_standard(void) {
    const unsigned long safe = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    mount_there("proc", "/proc", safe, "");
    mount_there("sysfs", "/sys", safe, "");
    mount_there("cgroup2", "/sys/fs/cgroup", safe, "nsdelegate");
    mount_there("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
    mount_there("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
    mount_there("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
    mount_there("mqueue", "/dev/mqueue", safe, "");
    symlink("/proc/self/fd", "/dev/fd");
    symlink("/proc/self/fd/0", "/dev/stdin");
    symlink("/proc/self/fd/1", "/dev/stdout");
    symlink("/proc/self/fd/2", "/dev/stderr");
}

/* Moves into the new root, as switch_root does: the mount is moved over "/" so that a process which enters init's mount
 * namespace afresh lands there too. The initramfs's own /dev, /proc and /sys stay below, out of reach: unmounting them
 * would wait for RCU, up to 18 ms. */
const char *rootfs_enter(void) {
    if (chdir("/newroot") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        return fail("entering", "the root filesystem");
    entered = true;
    mount_standard();
    return NULL;
}

/* The kernel writes a space, tab, line break and backslash of a path as three octal digits (proc(5)). */
static void unescape(char *text) {
    char *to = text;
    for (const char *at = text; *at; to++) {
        bool octal = at[0] == '\\' && at[1] >= '0' && at[1] <= '3' && at[2] >= '0' && at[2] <= '7' && at[3] >= '0' && at[3] <= '7';
        *to = octal ? (char)((at[1] - '0') << 6 | (at[2] - '0') << 3 | (at[3] - '0')) : *at;
        at += octal ? 4 : 1;
    }
    *to = 0;
}

/* Detached, a mount that something still holds would only disappear from sight: its filesystem is made clean first, by what a
 * remount writes. EBUSY: a file is open for writing, by a process that is just dying perhaps. */
static void leave_disk(const char *point) {
    for (int tries = 0; umount2(point, 0) < 0 && errno == EBUSY; tries++) {
        if (mount(NULL, point, NULL, MS_REMOUNT | MS_RDONLY, NULL) == 0 || errno != EBUSY || tries == 20) {
            if (tries == 20) say("the filesystem at %s is left unclean", point);
            umount2(point, MNT_DETACH);
            return;
        }
        usleep(10000);
    }
}

/* Volumes and what the image's processes mounted, the last first. */
static void unmount_others(void) {
    char *points[256];
    bool is_disk[256];
    size_t count = 0, size = 0;
    char line[4 * 4096 + 512];
    FILE *mounts = fopen("/proc/self/mounts", "re");
    while (mounts && count < 256 && fgets(line, sizeof line, mounts)) {
        char *rest = NULL, *device = strtok_r(line, " ", &rest), *point = device ? strtok_r(NULL, " ", &rest) : NULL;
        if (!point || !strcmp(point, "/")) continue;
        unescape(point);
        is_disk[count] = *device == '/';
        if ((points[count] = strdup(point))) count++;
    }
    if (mounts) fclose(mounts);
    for (size = count; size > 0; size--) {
        if (is_disk[size - 1]) leave_disk(points[size - 1]);
        else umount2(points[size - 1], MNT_DETACH);
    }
}

/* Leaves every filesystem clean: called when no process but init is left. */
void rootfs_leave(void) {
    sync();
    if (!entered) return;
    unmount_others();
    if (mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0) say("the root filesystem is left unclean: %s", strerror(errno));
    if (upper_fd >= 0 && (fchdir(upper_fd) < 0 || mount(NULL, ".", NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0))
        say("the upper filesystem is left unclean: %s", strerror(errno));
    sync();
}
