/* What the pod's container has used, by its cgroup. */

#ifndef RUNTAPE_ACCOUNT_H
#define RUNTAPE_ACCOUNT_H

#include <stdint.h>

struct spent {
    uint64_t user_ns;
    uint64_t system_ns;
    uint64_t memory_bytes; /* held now */
    uint64_t peak_memory_bytes;
    uint64_t oom_kills;
};

/* Open what tells it; where there is no cgroup, only what has ended counts. */
void open_account(void);

/* What was used since `open_account`, by the whole container; the peak is since its start. */
struct spent spent(void);

#endif
