/* What the runner of a pod and the service say to each other over the pod's standard input and output.

   Each message is a frame: a `struct head`, so many bytes, and END_OF_FRAME; numbers are little-endian and without
   padding.  The Python side is ../protocol.py.

   The service attaches, is cut off at any byte and attaches again, and so may another process of it.  Whoever does
   begins with PADDING zeros, which fill up a frame that was cut off and make it one without END_OF_FRAME, to be thrown
   away; between frames zeros mean nothing.  Then it says HELLO with a number that nobody has used before, and skips
   what comes until the runner has said MARK and that number: from there on frames are whole.  The runner says nothing
   to anybody who has not said HELLO. */

#ifndef RUNTAPE_PROTOCOL_H
#define RUNTAPE_PROTOCOL_H

#include <stdint.h>

#define PROTOCOL_VERSION 2
#define MARK "\0runtape"
#define MARK_BYTES 8
#define NONCE_BYTES 16
#define TOKEN_BYTES 16
#define TO_RUNNER_BYTES 16384 /* the greatest payload to the runner; greater ones come from it */
#define END_OF_FRAME 0x5a

struct __attribute__((packed)) head {
    uint8_t kind;
    uint32_t bytes;
};
#define PADDING (sizeof(struct head) + TO_RUNNER_BYTES + 1)

/* Service to runner. */
#define HELLO 'H'
struct __attribute__((packed)) hello {
    uint8_t nonce[NONCE_BYTES];
    uint32_t after_seq; /* the records up to it have arrived */
};
#define ORDER 'O' /* bytes of the order, in pieces; see native/confine.h */
#define INPUT 'I' /* bytes of the program's standard input, in pieces */
#define RUN 'R'   /* both are complete */
struct __attribute__((packed)) run {
    uint8_t token[TOKEN_BYTES]; /* that the report is to show, so that nobody else can have written it */
    uint64_t order_bytes;
    uint64_t input_bytes;
    uint64_t lease_ns; /* from now, as all times here */
    uint64_t wall_ns;
    uint64_t cpu_ns;
    uint64_t output_bytes;
    uint8_t timeline;
};
#define ACKNOWLEDGE 'A' /* up to which record all have arrived */
struct __attribute__((packed)) acknowledge {
    uint32_t seq;
};
#define LEASE 'L'
struct __attribute__((packed)) lease {
    uint64_t lease_ns;
};
#define KILL 'K'
#define COLLECT 'C' /* a `struct collect` of native/confine.h: what is taken of the files that were left */
#define LEAVE 'E'   /* nothing is wanted any more */

/* Runner to service. */
#define WELCOME 'W' /* the first after a MARK */
struct __attribute__((packed)) welcome {
    uint32_t version;
    uint8_t state;
};
enum state { WAITING = 'w', RUNNING = 'r', ENDED = 'e' };
#define STARTED 'S'
#define EXTENDED 'x' /* a LEASE has come: the service knows by it that the way is open in both directions */
#define RECORD 'r' /* followed by its data */
struct __attribute__((packed)) record {
    uint32_t seq;
    uint8_t stream; /* 1 or 2 */
    uint8_t truncated;
    uint64_t t_ns;
};
#define POINT 't'
struct __attribute__((packed)) point {
    uint64_t t_ns;
    uint64_t memory_bytes;
    uint64_t cpu_ns;
};
#define REPORT 'e' /* after the last record: the report, as it is in the file */
#define FILES 'f'  /* a datagram of native/collect.c */

#endif
