#include "spool.h"

#include <stdlib.h>
#include <string.h>

#define HELD_BYTES (2u << 20) /* beyond which the program waits at its full pipe */
#define SENT_BYTES (512u << 10) /* on their way at most: who attached last may be gone, and nobody told us */

static size_t cost(const struct kept *record) { return sizeof *record + record->room; }

void spool_begin(struct spool *spool) { *spool = (struct spool){.to_last = &spool->first}; }

bool spool_is_full(const struct spool *spool) { return spool->held_bytes >= HELD_BYTES; }

static struct kept *append(struct spool *spool, uint8_t stream, uint64_t t_ns, size_t room) {
    struct kept *record = malloc(sizeof *record + room);
    if (record == NULL) return NULL;
    *record = (struct kept){.seq = ++spool->last_seq, .room = room, .t_ns = t_ns, .stream = stream};
    if (spool->last != NULL) spool->to_last = &spool->last->next;
    *spool->to_last = spool->last = record;
    if (spool->unsent == NULL) spool->unsent = record;
    spool->held_bytes += cost(record);
    return record;
}

/* Give the last record room for `size` bytes, and as much again, so that many small pieces are not copied each time. */
static struct kept *grown(struct spool *spool, size_t size) {
    struct kept *old = spool->last;
    size_t room = 2 * size < RECORD_BYTES ? 2 * size : RECORD_BYTES;
    bool first_unsent = spool->unsent == old;
    struct kept *record = realloc(old, sizeof *record + room);
    if (record == NULL) return NULL;
    spool->held_bytes += room - record->room;
    record->room = room;
    *spool->to_last = spool->last = record;
    if (first_unsent) spool->unsent = record;
    return record;
}

bool spool_add(struct spool *spool, uint8_t stream, uint64_t t_ns, const char *data, size_t size) {
    struct kept *record = spool->unsent != NULL ? spool->last : NULL;
    if (record == NULL || record->stream != stream || record->size + size > RECORD_BYTES)
        record = append(spool, stream, t_ns, size);
    else if (record->size + size > record->room)
        record = grown(spool, record->size + size);
    if (record == NULL) return false;
    memcpy(record->data + record->size, data, size);
    record->size += size;
    return true;
}

bool spool_truncate(struct spool *spool, uint8_t stream, uint64_t t_ns) {
    struct kept *record = append(spool, stream, t_ns, 0);
    if (record != NULL) record->truncated = true;
    return record != NULL;
}

const struct kept *spool_next(struct spool *spool) {
    struct kept *record = spool->unsent;
    if (record == NULL || spool->sent_bytes >= SENT_BYTES) return NULL;
    spool->unsent = record->next;
    spool->sent_bytes += cost(record);
    return record;
}

void spool_acknowledge(struct spool *spool, uint32_t seq) {
    while (spool->first != NULL && spool->first->seq <= seq && spool->first != spool->unsent) {
        struct kept *record = spool->first;
        spool->first = record->next;
        spool->held_bytes -= cost(record);
        spool->sent_bytes -= cost(record);
        free(record);
    }
    if (spool->first == NULL) spool->last = NULL;
    if (spool->first == spool->last) spool->to_last = &spool->first;
}

void spool_rewind(struct spool *spool, uint32_t seq) {
    spool->unsent = NULL; /* all were sent */
    spool->sent_bytes = spool->held_bytes;
    spool_acknowledge(spool, seq);
    spool->unsent = spool->first;
    spool->sent_bytes = 0;
}
