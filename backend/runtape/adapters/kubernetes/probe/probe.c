/*
 * What a pod runs that is no program's: it holds its image, or finds out what can be reached.
 *
 *   probe hold                             waits to be ended
 *   probe listen PORT                      says a word to whoever connects, until it is ended
 *   probe connect SECONDS PORT ADDRESS...  exits with 64 and, for each address from which the word came within that
 *                                          time, its bit: 1 for the first, 2 for the second, up to 5 of them
 *
 * A connection is none until the word has come: something between two pods may accept what it never hands on.
 * Any other exit code is an error.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { REACHED = 64, MOST = 5, TRY_MS = 1000, PAUSE_MS = 100, USAGE = 2, BROKEN = 3 };

static const char word[] = "runtape\n";

union address {
    struct sockaddr any;
    struct sockaddr_in four;
    struct sockaddr_in6 six;
};

static void end(int number)
{
    (void)number;
    _exit(0);
}

static int broken(const char *what)
{
    perror(what);
    return BROKEN;
}

static long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static socklen_t parse(const char *text, int port, union address *into)
{
    memset(into, 0, sizeof *into);
    if (inet_pton(AF_INET, text, &into->four.sin_addr) == 1) {
        into->four.sin_family = AF_INET;
        into->four.sin_port = htons(port);
        return sizeof into->four;
    }
    if (inet_pton(AF_INET6, text, &into->six.sin6_addr) == 1) {
        into->six.sin6_family = AF_INET6;
        into->six.sin6_port = htons(port);
        return sizeof into->six;
    }
    return 0;
}

/* A node may have one family alone; the socket of the newer one takes both. */
static int listening(int port)
{
    union address at;
    socklen_t length = parse("::", port, &at);
    int on = 1, off = 0;
    int listener = socket(AF_INET6, SOCK_STREAM, 0);
    if (listener >= 0) {
        setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(listener, &at.any, length) == 0 && listen(listener, 16) == 0)
            return listener;
        close(listener);
    }
    length = parse("0.0.0.0", port, &at);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0)
        return -1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, &at.any, length) || listen(listener, 16))
        return -1;
    return listener;
}

static int serve(int port)
{
    int listener = listening(port);
    if (listener < 0)
        return broken("listen");
    for (;;) {
        int caller = accept(listener, NULL, NULL);
        if (caller < 0)
            continue;
        if (send(caller, word, sizeof word - 1, MSG_NOSIGNAL) < 0)
            perror("send");
        close(caller);
    }
}

static int within(int fd, short events, long until_ms)
{
    struct pollfd one = {.fd = fd, .events = events};
    long left_ms = until_ms - now_ms();
    return left_ms > 0 && poll(&one, 1, left_ms) == 1;
}

static int word_comes(const union address *address, socklen_t length, long until_ms)
{
    char got[sizeof word - 1];
    size_t filled = 0;
    int error = 0;
    socklen_t size = sizeof error;
    int fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return 0;
    if (connect(fd, &address->any, length) && errno != EINPROGRESS)
        goto out;
    if (!within(fd, POLLOUT, until_ms) || getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) || error)
        goto out;
    while (filled < sizeof got && within(fd, POLLIN, until_ms)) {
        ssize_t more = recv(fd, got + filled, sizeof got - filled, 0);
        if (more <= 0)
            break;
        filled += more;
    }
out:
    close(fd);
    return filled == sizeof got && memcmp(got, word, sizeof got) == 0;
}

static int reach(long seconds, int port, int count, char **texts)
{
    union address addresses[MOST];
    socklen_t lengths[MOST];
    int all = (1 << count) - 1, reached = 0;
    long until_ms = now_ms() + seconds * 1000;
    for (int i = 0; i < count; i++)
        if (!(lengths[i] = parse(texts[i], port, &addresses[i])))
            return USAGE;
    while (reached != all && now_ms() < until_ms) {
        for (int i = 0; i < count; i++) {
            long each_ms = now_ms() + TRY_MS;
            if (!(reached & 1 << i) && word_comes(&addresses[i], lengths[i], each_ms < until_ms ? each_ms : until_ms))
                reached |= 1 << i;
        }
        if (reached != all)
            usleep(PAUSE_MS * 1000);
    }
    return REACHED | reached;
}

int main(int argc, char **argv)
{
    signal(SIGTERM, end); /* as the first process of a container it has to ask for it */
    signal(SIGINT, end);
    if (argc == 2 && !strcmp(argv[1], "hold"))
        for (;;)
            pause();
    if (argc == 3 && !strcmp(argv[1], "listen"))
        return serve(atoi(argv[2]));
    if (argc > 4 && argc <= 4 + MOST && !strcmp(argv[1], "connect"))
        return reach(atol(argv[2]), atoi(argv[3]), argc - 4, argv + 4);
    fprintf(stderr, "usage: probe hold | listen PORT | connect SECONDS PORT ADDRESS...\n");
    return USAGE;
}
