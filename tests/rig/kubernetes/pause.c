/*
 * The first process of a machine of the rig, and of each pod on it: it waits, and reaps whom nobody else waits for.
 *
 * The kernel keeps no signal from a first process that it has no handler for, unless it is blocked.
 */
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>

int main(void)
{
    sigset_t awaited;

    sigemptyset(&awaited);
    sigaddset(&awaited, SIGCHLD);
    sigaddset(&awaited, SIGINT);
    sigaddset(&awaited, SIGTERM);
    sigprocmask(SIG_BLOCK, &awaited, NULL);
    for (;;) {
        int number = 0;

        sigwait(&awaited, &number);
        if (number == SIGINT || number == SIGTERM)
            return 0;
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
    }
}
