/* What a C program does by hand, as daemon(7) has it: two forks, a new session, the null device, a pipe that says so. */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static void run_daemon(int ready)
{
    int null = open("/dev/null", O_RDWR);

    umask(022);
    if (null < 0 || chdir("/") < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0)
        _exit(1);
    _exit(write(ready, "S", 1) != 1);
}

/* Return 0 in the caller once the daemon runs, -1 if it does not. The middle process is not waited for: the caller is
   about to end. */
int double_fork(void)
{
    int ends[2];
    char said;

    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    switch (fork()) {
    case -1:
        return -1;
    case 0:
        if (setsid() < 0)
            _exit(1);
        switch (fork()) {
        case -1:
            _exit(1);
        case 0:
            run_daemon(ends[1]);
        }
        _exit(0);
    }
    close(ends[1]);
    return read(ends[0], &said, 1) == 1 ? 0 : -1;
}
