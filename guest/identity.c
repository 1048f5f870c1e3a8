/* Who the command runs as: "user[:group]", by name or number, against the image's own files, as runc resolves it.
 * Runs in the child that becomes the command: the files are the image's and may be anything. */
#include "init.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char problem[200];

static FILE *open_regular(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    if (fd < 0) return NULL;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return NULL;
    }
    return fdopen(fd, "r");
}

/* Cuts a line at its colons; the fields that are missing are empty. */
static void split(char *line, char **fields, size_t count) {
    line[strcspn(line, "\r\n")] = 0;
    for (size_t i = 0; i < count; i++) {
        char *colon = strchr(line, ':');
        fields[i] = line;
        if (colon) *colon = 0, line = colon + 1;
        else line += strlen(line);
    }
}

static bool number(const char *text, uint32_t *value) {
    char *end;
    if (!isdigit((unsigned char)*text)) return false;
    errno = 0;
    unsigned long long parsed = strtoull(text, &end, 10);
    if (*end || errno || parsed > 0xFFFFFFFEu) return false; /* (uid_t)-1 means "leave it" to the kernel */
    *value = (uint32_t)parsed;
    return true;
}

/* A line of /etc/passwd that matches a name or a number; fills in uid, gid, home and, for a number, its name. */
static bool find_user(const char *user, bool numeric, struct identity *identity, char *name, size_t name_size) {
    FILE *passwd = open_regular("/etc/passwd");
    char *line = NULL, *fields[7];
    size_t capacity = 0;
    bool found = false;
    while (passwd && !found && getline(&line, &capacity, passwd) > 0) {
        uint32_t uid, gid;
        split(line, fields, 7);
        if (!number(fields[2], &uid) || !number(fields[3], &gid)) continue;
        if (strcmp(fields[0], user) && !(numeric && uid == identity->uid)) continue;
        found = true;
        identity->uid = uid;
        identity->gid = gid;
        snprintf(identity->home, sizeof identity->home, "%s", fields[5]);
        snprintf(name, name_size, "%s", fields[0]);
    }
    free(line);
    if (passwd) fclose(passwd);
    return found;
}

static bool is_member(char *members, const char *name) {
    char *rest = NULL;
    for (char *member = strtok_r(members, ",", &rest); member; member = strtok_r(NULL, ",", &rest))
        if (!strcmp(member, name)) return true;
    return false;
}

/* One pass over /etc/group: the gid of ``wanted``, or else every group of which ``name`` is a member. */
static bool scan_groups(const char *wanted, const char *name, struct identity *identity) {
    FILE *group = open_regular("/etc/group");
    char *line = NULL, *fields[4];
    size_t capacity = 0;
    bool found = false;
    while (group && !found && getline(&line, &capacity, group) > 0) {
        uint32_t gid;
        split(line, fields, 4);
        if (!number(fields[2], &gid)) continue;
        if (wanted) {
            found = !strcmp(fields[0], wanted);
            if (found) identity->gid = gid;
        } else if (*name && identity->group_count < sizeof identity->groups / sizeof *identity->groups && is_member(fields[3], name)) {
            identity->groups[identity->group_count++] = gid;
        }
    }
    free(line);
    if (group) fclose(group);
    return found;
}

/* NULL, or why there is no such user. */
const char *identity_resolve(const char *spec, struct identity *identity) {
    char user[256], name[256] = "";
    /* The first is the user's own group, as runtimes have it since CVE-2022-36109: a file that denies a group must deny its members. */
    *identity = (struct identity){.home = "/", .group_count = 1};
    const char *colon = strchr(spec, ':'), *group = colon ? colon + 1 : "";
    int length = colon ? (int)(colon - spec) : (int)strlen(spec);
    snprintf(user, sizeof user, "%.*s", length, spec);
    uint32_t value = 0;
    bool numeric = !*user || number(user, &value);
    identity->uid = value;
    if (!find_user(user, numeric, identity, name, sizeof name) && !numeric) {
        snprintf(problem, sizeof problem, "unable to find user %.100s: no matching entries in passwd file", user);
        return problem;
    }
    if (!*group) {
        scan_groups(NULL, name, identity);
    } else if (!scan_groups(group, "", identity)) {
        if (!number(group, &value)) {
            snprintf(problem, sizeof problem, "unable to find group %.100s: no matching entries in group file", group);
            return problem;
        }
        identity->gid = value;
    }
    identity->groups[0] = identity->gid;
    if (!*identity->home) strcpy(identity->home, "/");
    return NULL;
}
