/* What a runner does, however it was made: it takes its order and carries it out as far as the program itself. */

#ifndef RUNTAPE_RUNNER_H
#define RUNTAPE_RUNNER_H

#include <stddef.h>

struct program {
    char **arguments; /* each list ends with a NULL; both live as long as the runner */
    char **variables;
};

/* Descriptors that a runner works with; -1 for what it has not. */
struct runner {
    int channel;
    int memory_limit;
    int processes;
    int sync; /* pid 1 reads on it what the runner has used up to its order */
};

/* Carry out an order as far as the program itself: write files, open stdin (`stdin_fd`, or -1 for the order's own) and
   set limits.  Returns NULL, or the name of the step that failed with errno set. */
const char *carry_out(const char *order, size_t size, int stdin_fd, const struct runner *runner,
                      struct program *program);

/* Wait for the order and carry it out.  Ends this process when there will be none. */
const char *take_order(const struct runner *runner, struct program *program);

#endif
