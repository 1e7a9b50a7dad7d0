/* What a C program does by hand: a pidfd, SIGTERM, and a wait for the end. */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Return 0 once the process has ended, -1 on an error. */
int stop(pid_t pid)
{
    int fd = syscall(SYS_pidfd_open, pid, 0);
    struct pollfd end = {.fd = fd, .events = POLLIN};
    int result;

    if (fd < 0)
        return -1;
    result = syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0);
    if (result == 0)
        result = poll(&end, 1, -1) == 1 ? 0 : -1;
    close(fd);
    return result;
}
