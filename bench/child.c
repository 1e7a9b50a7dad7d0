/* What is supervised: `child FIFO MODE [ARGUMENT]`, a program that costs next to nothing.

   Each process of it writes one line to FIFO as it begins, "ROLE PID NANOSECONDS", so that whoever measures knows when
   it ran and whom to look for afterwards. Modes: sleep; ready (says so, and sleeps); tree and stubborn (four processes, the latter ignore what asks
   them to end); crash FILE (ends with status 1 unless FILE is there); log LINES; serve FD-or-PORT. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static const char *fifo;
static volatile sig_atomic_t ending;

static void report(const char *role)
{
    char line[96];
    struct timespec now;
    int length, fd = open(fifo, O_WRONLY | O_CLOEXEC);

    clock_gettime(CLOCK_MONOTONIC, &now);
    length = snprintf(line, sizeof line, "%s %d %lld\n", role, getpid(), now.tv_sec * 1000000000LL + now.tv_nsec);
    if (fd < 0 || write(fd, line, length) != length)
        exit(3);
    close(fd);
}

static void wait_for_ever(void)
{
    for (;;)
        pause();
}

static void live_as(const char *role)
{
    report(role);
    wait_for_ever();
}

/* One in the group, one in a session of its own, one that has also lost its parent. */
static void tree(void)
{
    if (!fork())
        live_as("group");
    if (!fork()) {
        setsid();
        live_as("setsid");
    }
    if (!fork()) {
        setsid();
        if (fork())
            _exit(0);
        live_as("orphan");
    }
    live_as("main");
}

static void write_lines(long lines)
{
    static char buffer[1 << 16];

    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    report("main");
    for (long i = 0; i < lines; i++)
        printf("%08ld a line of a log as a program writes it, sixty-four bytes..\n", i);
    fflush(stdout);
    report("written");
    wait_for_ever();
}

static void ask_to_end(int number)
{
    (void)number;
    ending = 1;
}

static void tell_ready(void)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;

    if (!path)
        return;
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (*path == '@')
        address.sun_path[0] = 0;
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sendto(fd, "READY=1", 7, 0, (void *)&address, offsetof(struct sockaddr_un, sun_path) + strlen(path));
    close(fd);
}

/* Whoever is handed no socket binds one of its own, beside those of the other instances. */
static int bind_port(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    if (bind(fd, (void *)&address, sizeof address) || listen(fd, 1024))
        exit(4);
    return fd;
}

/* Answer one connection after the other; on SIGTERM end what has begun, and then itself. */
static void serve(int fd)
{
    static const char answer[] = "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
    char request[4096];
    sigset_t asked, none;
    struct pollfd listening = {fd, POLLIN, 0};

    sigemptyset(&none);
    sigemptyset(&asked);
    sigaddset(&asked, SIGTERM);
    sigprocmask(SIG_BLOCK, &asked, NULL);
    signal(SIGTERM, ask_to_end);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    report("main");
    tell_ready();
    while (!ending) {
        int client;

        if (ppoll(&listening, 1, NULL, &none) < 1 || (client = accept4(fd, NULL, NULL, SOCK_CLOEXEC)) < 0)
            continue;
        if (read(client, request, sizeof request) > 0 && write(client, answer, sizeof answer - 1) < 0)
            exit(5);
        close(client);
    }
}

int main(int argc, char **argv)
{
    const char *mode = argc > 2 ? argv[2] : "", *argument = argc > 3 ? argv[3] : "";

    fifo = argv[1];
    if (!strcmp(mode, "sleep"))
        live_as("main");
    if (!strcmp(mode, "ready")) {
        tell_ready();
        live_as("main");
    }
    if (!strcmp(mode, "stubborn")) {
        signal(SIGTERM, SIG_IGN);
        signal(SIGINT, SIG_IGN);
        tree();
    }
    if (!strcmp(mode, "tree"))
        tree();
    if (!strcmp(mode, "log"))
        write_lines(atol(argument));
    if (!strcmp(mode, "crash")) {
        report("main");
        if (access(argument, F_OK))
            return 1;
        wait_for_ever();
    }
    if (!strcmp(mode, "serve")) {
        int number = atoi(argument);

        serve(number < 1024 ? number : bind_port(number));
        return 0;
    }
    return 2;
}
