/* The network: loopback, and one card with the static address that the VMM's driver chose. */
#include "init.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static char own[20] = "127.0.0.1";

/* The address at which others reach this machine; the loopback where there is no network. */
const char *network_own(void) { return own; }

static struct sockaddr address_of(in_addr_t address) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = address};
    struct sockaddr out;
    memcpy(&out, &in, sizeof out);
    return out;
}

static int bring_up(int sock, const char *name) {
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    if (ioctl(sock, SIOCGIFFLAGS, &request) < 0) return -1;
    request.ifr_flags |= IFF_UP | IFF_RUNNING;
    return ioctl(sock, SIOCSIFFLAGS, &request);
}

void network_loopback(void) {
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock < 0 || bring_up(sock, "lo") < 0) say("loopback: %s", strerror(errno));
    if (sock >= 0) close(sock);
}

static int configure(int sock, const struct cmdline *c) {
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "eth0");
    request.ifr_addr = address_of(inet_addr(c->address));
    if (ioctl(sock, SIOCSIFADDR, &request) < 0) return -1;
    request.ifr_netmask = address_of(c->prefix ? htonl(~0u << (32 - c->prefix)) : 0);
    if (ioctl(sock, SIOCSIFNETMASK, &request) < 0 || bring_up(sock, "eth0") < 0) return -1;
    struct rtentry route = {.rt_flags = RTF_UP | RTF_HOST, .rt_dev = "eth0"};
    route.rt_dst = address_of(inet_addr(c->gateway));
    /* Alone in its network, a machine has nobody beside it but the gateway. */
    if (c->prefix == 32 && ioctl(sock, SIOCADDRT, &route) < 0) return -1;
    route = (struct rtentry){.rt_flags = RTF_UP | RTF_GATEWAY};
    route.rt_dst = address_of(INADDR_ANY);
    route.rt_genmask = address_of(INADDR_ANY);
    route.rt_gateway = address_of(inet_addr(c->gateway));
    return ioctl(sock, SIOCADDRT, &route);
}

/* As <linux/ipv6.h> has it, which does not go together with <netinet/in.h>. */
struct address6 {
    struct in6_addr address;
    uint32_t prefix;
    int index;
};

/* A /128 and a route through the gateway. Nobody else can have the address, so it need not be tried out for a second. */
static int configure6(const struct cmdline *c) {
    write_file("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0");
    write_file("/proc/sys/net/ipv6/conf/eth0/accept_ra", "0");
    struct address6 own6 = {.prefix = 128, .index = (int)if_nametoindex("eth0")};
    struct in6_rtmsg route = {.rtmsg_dst_len = 128, .rtmsg_metric = 1, .rtmsg_flags = RTF_UP | RTF_HOST};
    struct in6_rtmsg rest = {.rtmsg_metric = 1, .rtmsg_flags = RTF_UP | RTF_GATEWAY};
    route.rtmsg_ifindex = rest.rtmsg_ifindex = own6.index;
    if (inet_pton(AF_INET6, c->address6, &own6.address) != 1 || inet_pton(AF_INET6, c->gateway6, &route.rtmsg_dst) != 1) {
        errno = EINVAL;
        return -1;
    }
    rest.rtmsg_gateway = route.rtmsg_dst;
    int sock = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock < 0) return -1;
    int done = ioctl(sock, SIOCSIFADDR, &own6) < 0 || ioctl(sock, SIOCADDRT, &route) < 0 || ioctl(sock, SIOCADDRT, &rest) < 0;
    int why = errno;
    close(sock);
    errno = why;
    return done ? -1 : 0;
}

void network_up(const struct cmdline *c) {
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock < 0 || c->prefix > 32 || configure(sock, c) < 0) say("network: %s", strerror(errno));
    else snprintf(own, sizeof own, "%s", c->address);
    if (sock >= 0) close(sock);
    if (c->address6[0] && configure6(c) < 0) say("IPv6: %s", strerror(errno));
    /* As Docker has it: a process without privileges may listen on any port and ping. */
    write_file("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    write_file("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
}

/* Replaces a file of the image; what is there may be a link that leads nowhere (systemd's resolv.conf). */
static void replace(const char *path, const char *text) {
    mkdir("/etc", 0755);
    struct stat st;
    if (lstat(path, &st) == 0 && !S_ISREG(st.st_mode)) unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text)) say("cannot write %s: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
}

void network_files(const struct cmdline *c, const char *hostname) {
    char text[512];
    snprintf(text, sizeof text, "%s\n", hostname);
    replace("/etc/hostname", text);
    snprintf(text, sizeof text, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n%s\t%s\n",
             c->prefix >= 0 ? c->address : "127.0.1.1", hostname);
    replace("/etc/hosts", text);
    if (c->prefix < 0 || !c->nameserver[0]) return;
    snprintf(text, sizeof text, "nameserver %s\n", c->nameserver);
    replace("/etc/resolv.conf", text);
}
