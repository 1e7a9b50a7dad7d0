/* What a C program does by hand: posix_spawn(3) into a new session, the null device on 0, 1 and 2. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stddef.h>
#include <unistd.h>

static pid_t spawn(char *const argv[], posix_spawn_file_actions_t *actions, posix_spawnattr_t *attributes)
{
    pid_t pid;
    int error = posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSID);

    if (!error)
        error = posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDWR, 0);
    if (!error)
        error = posix_spawn_file_actions_adddup2(actions, 0, 1);
    if (!error)
        error = posix_spawn_file_actions_adddup2(actions, 0, 2);
    if (!error)
        error = posix_spawn(&pid, argv[0], actions, attributes, argv, environ);
    return error ? -error : pid;
}

/* Return the pid of a program that has been exec'ed, or a negative errno. */
pid_t spawn_detached(char *program)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    char *argv[] = {program, NULL};
    pid_t result = -ENOMEM;

    if (posix_spawnattr_init(&attributes))
        return result;
    if (!posix_spawn_file_actions_init(&actions)) {
        result = spawn(argv, &actions, &attributes);
        posix_spawn_file_actions_destroy(&actions);
    }
    posix_spawnattr_destroy(&attributes);
    return result;
}
