#define _GNU_SOURCE
#include "account.h"

#include "confine.h"

#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/resource.h>

#define GROUP "/sys/fs/cgroup/"

enum { CPU, CPU_USER, CPU_SYSTEM, MEMORY, PEAK, EVENTS, FILES_OF_GROUP };

/* By version: the second is v1, where the hierarchies are apart. */
static const char *const names[2][FILES_OF_GROUP] = {
    {GROUP "cpu.stat", NULL, NULL, GROUP "memory.current", GROUP "memory.peak", GROUP "memory.events"},
    {NULL, GROUP "cpuacct/cpuacct.usage_user", GROUP "cpuacct/cpuacct.usage_sys", GROUP "memory/memory.usage_in_bytes",
     GROUP "memory/memory.max_usage_in_bytes", GROUP "memory/memory.oom_control"},
};
static int files[FILES_OF_GROUP];
static struct spent before;

static struct spent total(void) {
    struct spent now = {0};
    if (files[CPU] >= 0) {
        now.user_ns = field_in(files[CPU], "user_usec") * 1000;
        now.system_ns = field_in(files[CPU], "system_usec") * 1000;
    } else if (files[CPU_USER] >= 0) {
        now.user_ns = number_in(files[CPU_USER]);
        now.system_ns = number_in(files[CPU_SYSTEM]);
    } else {
        usage_of(RUSAGE_CHILDREN, &now.user_ns, &now.system_ns);
    }
    now.memory_bytes = number_in(files[MEMORY]);
    now.peak_memory_bytes = number_in(files[PEAK]);
    now.oom_kills = field_in(files[EVENTS], "oom_kill");
    return now;
}

void open_account(void) {
    int v1 = 0;
    for (int i = 0; i < FILES_OF_GROUP; i++) files[i] = names[0][i] ? open(names[0][i], O_RDONLY | O_CLOEXEC) : -1;
    v1 = files[CPU] < 0;
    for (int i = 0; v1 && i < FILES_OF_GROUP; i++) files[i] = names[1][i] ? open(names[1][i], O_RDONLY | O_CLOEXEC) : -1;
    before = total();
}

struct spent spent(void) {
    struct spent now = total();
    now.user_ns -= before.user_ns < now.user_ns ? before.user_ns : now.user_ns;
    now.system_ns -= before.system_ns < now.system_ns ? before.system_ns : now.system_ns;
    now.oom_kills -= before.oom_kills < now.oom_kills ? before.oom_kills : now.oom_kills;
    return now;
}
