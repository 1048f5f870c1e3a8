/* Answers fanotify pre-content events whose bytes are here, in the hydrator's process but without its interpreter.
 *
 * A thread of the hydrator calls castoff_answer() and is in it nearly always. What it does is what castoff.hydrate.eventlog
 * says, in the same order: an event is read straight into the shared log, answered, its slot is freed, its descriptor is
 * closed. So whoever is killed in here leaves what the same kill leaves in Python. An event whose bytes are absent stays in
 * its slot and is handed to the caller.
 *
 * Built by packaging/build_init.py into a library that castoff.hydrate.answerer loads; its struct is repeated there. */

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { SLOT = 48, BATCH = 16, RANGE_KIND = 6, FULL = -ENOBUFS };

/* fanotify(7) and linux/fanotify.h, which Debian 12's headers do not have: FAN_EVENT_INFO_TYPE_RANGE. */
struct range {
    uint8_t kind, pad;
    uint16_t length;
    uint32_t reserved;
    uint64_t offset, count;
};

struct slot {
    struct fanotify_event_metadata event;
    struct range range;
};
_Static_assert(sizeof(struct slot) == SLOT, "a slot is one event with one range");

/* Which chunks were accessed first, and when: for the boot profile. One writer, and one reader of the first `count`. */
struct uses {
    uint8_t *seen;     /* [chunks] */
    double *when;      /* [chunks] seconds of CLOCK_MONOTONIC */
    uint32_t *chunk;   /* [chunks] */
    uint64_t count;
};

struct answerer {
    int32_t group, stop;
    struct slot *log;
    uint64_t slots;
    const uint8_t *absent; /* [chunks] 1 for a chunk that is not here; cleared by the filler once its bytes are in the file */
    uint64_t chunks, chunk_size, size;
};

/* First and last chunk of an access, within the file; an access without a range, or one of no bytes, as Python has it. */
static void chunks_of(const struct answerer *a, const struct slot *slot, uint64_t *first, uint64_t *end)
{
    uint64_t offset = 0, count = 0;
    if (slot->event.event_len == SLOT && slot->range.kind == RANGE_KIND) {
        offset = slot->range.offset;
        count = slot->range.count;
    }
    uint64_t last = count ? offset + count : a->size;
    if (last < offset) /* past the end of all numbers */
        last = UINT64_MAX;
    *first = offset / a->chunk_size;
    *end = last > offset ? (last - 1) / a->chunk_size + 1 : *first + 1;
    if (*end > a->chunks)
        *end = a->chunks;
}

static int is_here(const struct answerer *a, uint64_t first, uint64_t end)
{
    for (uint64_t chunk = first; chunk < end; chunk++)
        if (__atomic_load_n(&a->absent[chunk], __ATOMIC_ACQUIRE))
            return 0;
    return 1;
}

static void record(struct uses *uses, uint64_t first, uint64_t end)
{
    struct timespec now = {0, 0};
    for (uint64_t chunk = first; chunk < end; chunk++) {
        if (uses->seen[chunk])
            continue;
        if (!now.tv_sec)
            clock_gettime(CLOCK_MONOTONIC, &now);
        uses->seen[chunk] = 1;
        uses->when[uses->count] = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
        uses->chunk[uses->count] = (uint32_t)chunk;
        __atomic_store_n(&uses->count, uses->count + 1, __ATOMIC_RELEASE);
    }
}

/* Whether it could be answered: else the caller tries again, and tells why it does not work. */
static int allow(const struct answerer *a, struct slot *slot)
{
    struct fanotify_response response = {.fd = slot->event.fd, .response = FAN_ALLOW};
    int descriptor = slot->event.fd;
    if (write(a->group, &response, sizeof response) < 0 && errno != ENOENT)
        return 0;
    __atomic_store_n(&slot->event.event_len, 0, __ATOMIC_RELEASE);
    close(descriptor);
    return 1;
}

/* Free slots, at most `most`, each a buffer: fanotify fills each by a read of its own, and stops at the first without. */
static int free_slots(const struct answerer *a, struct iovec *buffers, int most)
{
    int found = 0;
    for (uint64_t i = 0; i < a->slots && found < most; i++)
        if (!__atomic_load_n(&a->log[i].event.event_len, __ATOMIC_ACQUIRE))
            buffers[found++] = (struct iovec){&a->log[i], SLOT};
    return found;
}

/* Reads what waits; the number of events, or an error. */
static int take(const struct answerer *a, const struct iovec *buffers, int count)
{
    ssize_t size = readv(a->group, buffers, count);
    int error = size < 0 ? errno : 0;
    int taken = size < 0 ? 0 : (int)((size + SLOT - 1) / SLOT);
    for (int i = taken; i < count; i++) /* half of an event that the kernel then could not hand out would hold its slot for good */
        __atomic_store_n((uint32_t *)buffers[i].iov_base, 0, __ATOMIC_RELEASE);
    return error && error != EAGAIN && error != EINTR ? -error : taken;
}

/* Takes events and answers those whose bytes are here, until there are others.
 *
 * wait:   milliseconds to wait for an event, -1 for ever; 0 takes what waits and returns
 * uses:   where accesses are recorded, or NULL
 * handed: [16] numbers of slots whose events are the caller's to answer
 *
 * Returns how many were handed over: 0 where `stop` is readable, or nothing came within `wait`. Negative: an errno of
 * reading the group; -ENOBUFS where no slot is free. */
int castoff_answer(const struct answerer *a, int wait, struct uses *uses, uint16_t *handed)
{
    struct pollfd waiting[2] = {{a->group, POLLIN, 0}, {a->stop, POLLIN, 0}};
    struct iovec buffers[BATCH];
    int batch = 2;
    for (;;) {
        if (poll(waiting, 2, wait) < 0 && errno != EINTR)
            return -errno;
        int count = free_slots(a, buffers, batch);
        if (!count)
            return FULL;
        int taken = take(a, buffers, count);
        if (taken < 0)
            return taken;
        int left = 0;
        for (int i = 0; i < taken; i++) {
            struct slot *slot = buffers[i].iov_base;
            uint64_t first, end;
            chunks_of(a, slot, &first, &end);
            if (uses)
                record(uses, first, end);
            if (slot->event.vers != FANOTIFY_METADATA_VERSION || slot->event.fd < 0 || !is_here(a, first, end) || !allow(a, slot))
                handed[left++] = (uint16_t)(slot - a->log);
        }
        if (left || (waiting[1].revents & POLLIN) || (!taken && wait >= 0))
            return left;
        batch = taken == count ? BATCH : 2; /* one reader's events come one at a time: buffers for a crowd cost each of them */
    }
}
