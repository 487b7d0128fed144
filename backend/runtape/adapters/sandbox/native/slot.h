/* A slot and the box that it holds; see nursery.c for the whole. */

#ifndef RUNTAPE_SLOT_H
#define RUNTAPE_SLOT_H

#include "confine.h"

struct slot {
    struct make_slot how;
    int fds[SLOT_FDS];
    /* The box that it holds now. */
    pid_t init;
    int pidfd;
    int ready;
    int handed[3];
    uint32_t box;
    bool armed, out_of_memory;
};

struct box {
    uint32_t number;
    int ready; /* to its slot */
    int sync;  /* from its runner; -1 when that has nothing to tell but its end */
    int channel, stdout, stderr;
};

pid_t clone_into(uint64_t flags, int *pidfd); /* `pidfd` may be NULL; -1 and errno */

/* Serve the keeper with boxes, in namespaces of its own; returns the name of a step that failed before the first. */
const char *be_slot(struct slot *slot, int mapped);

/* Be the first process of a box. */
void be_init(struct slot *slot, const struct arm *order, struct box *box) __attribute__((noreturn));

/* Begin the life of a process that becomes a program: signals, session, stdout and stderr. */
void begin_program(const struct box *box);

/* Start the interpreter that is parked in a box, and the clerk that will tell it what to run.  Sets `box->sync`, on
   which the interpreter tells that it is ready, and the interpreter's pid.  Returns the name of a step that failed. */
const char *park(struct slot *slot, struct box *box, pid_t *interpreter);

#endif
