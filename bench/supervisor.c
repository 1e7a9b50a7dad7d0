/* The least that keeps N instances running: `supervisor N PROGRAM ARGUMENT...`. It restarts what ends, at once, and
   ends with what it runs on SIGTERM. What else a supervisor is for it leaves out. */
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static pid_t start(char **argv)
{
    pid_t pid;

    return posix_spawn(&pid, argv[0], NULL, NULL, argv, environ) ? -1 : pid;
}

static pid_t pids[4000];
static int count;

static void end(int number)
{
    for (int i = 0; i < count; i++)
        kill(pids[i], number);
    while (wait(NULL) > 0)
        ;
    _exit(0);
}

int main(int argc, char **argv)
{
    pid_t ended;

    if (argc < 3 || (count = atoi(argv[1])) > (int)(sizeof pids / sizeof *pids))
        return 2;
    for (int i = 0; i < count; i++)
        pids[i] = start(argv + 2);
    signal(SIGTERM, end);
    while ((ended = wait(NULL)) > 0)
        for (int i = 0; i < count; i++)
            if (pids[i] == ended)
                pids[i] = start(argv + 2);
    return 0;
}
