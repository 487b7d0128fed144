/* What the program has printed and the service has not acknowledged. */

#ifndef RUNTAPE_SPOOL_H
#define RUNTAPE_SPOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RECORD_BYTES 65536

struct kept {
    struct kept *next;
    uint32_t seq;
    uint32_t size, room;
    uint64_t t_ns;
    uint8_t stream;
    bool truncated;
    char data[];
};

struct spool {
    struct kept *first, *last;
    struct kept **to_last; /* what points to the last; it may move while it grows */
    struct kept *unsent; /* the first that this attachment has not been sent; NULL: all were */
    size_t held_bytes;   /* of all records, with what they cost */
    size_t sent_bytes;   /* of those that were sent and are not acknowledged */
    uint32_t last_seq;
};

/* Begin empty. */
void spool_begin(struct spool *spool);

/* Whether the program has to wait. */
bool spool_is_full(const struct spool *spool);

/* Add a piece of at most RECORD_BYTES: to the last record, where that was not sent, is of the same stream and has room.
   false: there is no memory. */
bool spool_add(struct spool *spool, uint8_t stream, uint64_t t_ns, const char *data, size_t size);

/* Add the record that marks that more was printed than is allowed; nothing follows it. */
bool spool_truncate(struct spool *spool, uint8_t stream, uint64_t t_ns);

/* The next record to be sent, NULL when there is none or too much is on its way; it counts as sent then. */
const struct kept *spool_next(struct spool *spool);

/* Forget the records up to `seq`. */
void spool_acknowledge(struct spool *spool, uint32_t seq);

/* Send what is left again, to whoever has attached and has all up to `seq`. */
void spool_rewind(struct spool *spool, uint32_t seq);

#endif
