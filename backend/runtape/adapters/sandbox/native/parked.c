/* An interpreter that has started in its box, confined, before there is anything to run: it is parked.

   Theory of operation.  What a runner does is split in two.  The *interpreter* is exec'd when the box is armed, by an
   order of its own, the same for all boxes of its slot: that names the command, the environment, and the limits of one
   process, which nobody can change once it runs.  So such a box is for programs that ask for these limits; others are
   exec'd.  It tells on `sync` that it is ready, and waits for a text.

   The *clerk* is a runner that becomes no program.  It takes the program's order, writes the files, sets what the
   cgroup bounds, fills the interpreter's stdin, passes arguments and environment on as text, and ends.  So no
   interpreter ever holds the channel, on which a program could tell an end that is not its own.

   The interpreter's end of it is a starter, as starters/node.js. */

#define _GNU_SOURCE
#include "runner.h"
#include "slot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TEXTS 3 /* where a starter reads what to run: the number of arguments, these, and the variables, each a text
                   with its NUL, and the end of file */
#define SYNC 4  /* where it writes `struct ready`: once when it waits, once when it has read */
#define SPARE 64

static const char *become_interpreter(const struct box *box, int parking, int stdin_fd, int texts, int sync) {
    begin_program(box);
    struct stat file;
    if (fstat(parking, &file) < 0) return "the parking order";
    const char *order = mmap(NULL, file.st_size, PROT_READ, MAP_PRIVATE, parking, 0);
    if (order == MAP_FAILED) return "the parking order";
    int kept[] = {texts, sync};
    for (int i = 0; i < 2; i++)
        if ((kept[i] = fcntl(kept[i], F_DUPFD_CLOEXEC, SPARE)) < 0) return "descriptors";
    struct runner nobody = {-1, -1, -1, -1};
    struct program program;
    const char *step = carry_out(order, file.st_size, stdin_fd, &nobody, &program);
    if (step != NULL) return step;
    if (dup2(kept[0], TEXTS) < 0 || dup2(kept[1], SYNC) < 0) return "descriptors"; /* these pass through the exec */
    execve(program.arguments[0], program.arguments, program.variables);
    return program.arguments[0];
}

static void be_clerk(const struct box *box, const int *group, int stdin_fd, int texts_fd) {
    begin_program(box);
    struct runner runner = {box->channel, group[SLOT_MEMORY_LIMIT], group[SLOT_PROCESSES], -1};
    struct program program;
    const char *step = take_order(&runner, &program);
    if (step != NULL) {
        tell_failure(box->channel, 0, step);
        _exit(1);
    }
    char page[4096];
    ssize_t length = read(STDIN_FILENO, page, sizeof page); /* what came with the order; it fits an empty pipe */
    if (length > 0) (void)!write(stdin_fd, page, length);
    close(stdin_fd);
    FILE *texts = fdopen(texts_fd, "w");
    if (texts == NULL) _exit(1);
    int arguments = 0;
    while (program.arguments[arguments] != NULL) arguments++;
    fprintf(texts, "%d%c", arguments, 0);
    for (int i = 0; i < arguments; i++) fprintf(texts, "%s%c", program.arguments[i], 0);
    for (char **variable = program.variables; *variable != NULL; variable++) fprintf(texts, "%s%c", *variable, 0);
    fclose(texts);
    _exit(0);
}

const char *park(struct slot *slot, struct box *box, pid_t *interpreter) {
    int ends[3][2];
    for (int i = 0; i < 3; i++)
        if (pipe2(ends[i], O_CLOEXEC) < 0) return "descriptors"; /* the box ends with that, and its descriptors */
    int *input = ends[0], *texts = ends[1], *sync = ends[2];
    *interpreter = fork();
    if (*interpreter == 0) {
        const char *step = become_interpreter(box, slot->fds[SLOT_PARKING], input[0], texts[0], sync[1]);
        tell_failure_by_pipe(sync[1], step);
        _exit(1);
    }
    close(input[0]), close(texts[0]), close(sync[1]);
    pid_t clerk = *interpreter < 0 ? -1 : fork();
    if (clerk == 0) {
        close(box->ready), close(sync[0]);
        be_clerk(box, slot->fds, input[1], texts[1]);
    }
    close(input[1]), close(texts[1]);
    box->sync = sync[0];
    return clerk < 0 ? "fork" : NULL;
}
