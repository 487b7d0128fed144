"""The system calls that a confined program may make, by name, with their numbers on each machine.

Grouped by purpose; every entry reads ``name:x86_64:aarch64``, an absent number meaning that the machine never had
the call.  What is missing here is refused: namespaces and mounts, keyrings, bpf, perf, io_uring, userfaultfd,
ptrace and its relatives, SysV and POSIX queues, memfd (it would hold memory that no process map shows), inotify (it
would tell what others do with the files that all boxes share), and all that needs a capability anyway.  Calls whose
arguments decide are in `GUARDED`; `seccomp.py` has their rules.

Source: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h, Linux 6.1 to 6.18.
"""

from typing import Final

_PLAIN: Final = """\
# reading and writing
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70
preadv2:327:286 pwritev2:328:287 lseek:8:62 sendfile:40:71 splice:275:76 tee:276:77 copy_file_range:326:285
fsync:74:82 fdatasync:75:83 sync_file_range:277:84 readahead:187:213 fadvise64:221:223 truncate:76:45
ftruncate:77:46 fallocate:285:47
# files and directories
open:2: creat:85: openat:257:56 openat2:437:437 close:3:57 close_range:436:436 stat:4: fstat:5:80 lstat:6:
newfstatat:262:79 statx:332:291 statfs:137:43 fstatfs:138:44 access:21: faccessat:269:48 faccessat2:439:439
readlink:89: readlinkat:267:78 getdents:78: getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50 mkdir:83:
mkdirat:258:34 rmdir:84: unlink:87: unlinkat:263:35 rename:82: renameat:264:38 renameat2:316:276 link:86:
linkat:265:37 symlink:88: symlinkat:266:36 chmod:90: fchmod:91:52 fchmodat:268:53 fchmodat2:452:452 chown:92:
fchown:93:55 lchown:94: fchownat:260:54 utime:132: utimes:235: utimensat:280:88 futimesat:261: umask:95:166
flock:73:32 getxattr:191:8 lgetxattr:192:9 fgetxattr:193:10 listxattr:194:11 llistxattr:195:12 flistxattr:196:13
# descriptors and waiting
dup:32:23 dup2:33: dup3:292:24 pipe:22: pipe2:293:59 poll:7: ppoll:271:73 select:23: pselect6:270:72
epoll_create:213: epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232: epoll_pwait:281:22 epoll_pwait2:441:441
eventfd:284: eventfd2:290:19 timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87 signalfd:282:
signalfd4:289:74
# memory
mmap:9:222 munmap:11:215 mprotect:10:226 mremap:25:216 madvise:28:233 brk:12:214 mincore:27:232 msync:26:227
membarrier:324:283
# processes and threads
fork:57: vfork:58: execve:59:221 execveat:322:281 wait4:61:260 waitid:247:95 exit:60:93 exit_group:231:94
getpid:39:172 getppid:110:173 gettid:186:178 getpgrp:111: getpgid:121:155 setpgid:109:154 getsid:124:156
setsid:112:157 set_tid_address:218:96 set_robust_list:273:99 get_robust_list:274:100 futex:202:98
futex_waitv:449:449 rseq:334:293 arch_prctl:158: getcpu:309:168 sched_yield:24:124 sched_getaffinity:204:123
sched_getparam:143:121 sched_getscheduler:145:120 sched_get_priority_max:146:125
sched_get_priority_min:147:126 sched_rr_get_interval:148:127 getpriority:140:141
getrlimit:97:163 setrlimit:160:164 getrusage:98:165 pidfd_open:434:434 restart_syscall:219:128
# signals
kill:62:129 tkill:200:130 tgkill:234:131 pidfd_send_signal:424:424 rt_sigaction:13:134 rt_sigprocmask:14:135
rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigtimedwait:128:137 rt_sigqueueinfo:129:138 rt_tgsigqueueinfo:297:240
rt_sigsuspend:130:133 sigaltstack:131:132 pause:34:
# time
alarm:37: setitimer:38:103 getitimer:36:102 nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113
clock_getres:229:114 gettimeofday:96:169 time:201: times:100:153 timer_create:222:107 timer_settime:223:110
timer_gettime:224:108 timer_getoverrun:225:109 timer_delete:226:111
# identity and machine
getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148 getresgid:120:150 getgroups:115:158
capget:125:90 uname:63:160 sysinfo:99:179 getrandom:318:278
# sockets; the network namespace has a loopback and nothing else
bind:49:200 listen:50:201 accept:43:202 accept4:288:242 connect:42:203 getsockname:51:204 getpeername:52:205
getsockopt:55:209 setsockopt:54:208 shutdown:48:210 sendto:44:206 recvfrom:45:207 sendmsg:46:211 recvmsg:47:212
sendmmsg:307:269 recvmmsg:299:243
"""

_GUARDED: Final = """\
socket:41:198 socketpair:53:199 fcntl:72:25 clone:56:220 clone3:435:435 prctl:157:167 ioctl:16:29
prlimit64:302:261 mknod:133: mknodat:259:33 setpriority:141:140 sched_setaffinity:203:122
"""

_OF_NO_MONITOR: Final = """\
bpf:321:280 perf_event_open:298:241 io_uring_setup:425:425 io_uring_enter:426:426 io_uring_register:427:427
userfaultfd:323:282 add_key:248:217 request_key:249:218 keyctl:250:219 kexec_load:246:104 kexec_file_load:320:294
init_module:175:105 finit_module:313:273 delete_module:176:106 open_by_handle_at:304:265 pidfd_getfd:438:438
kcmp:312:272 quotactl:179:60 quotactl_fd:443:443 swapon:167:224 swapoff:168:225 reboot:169:142 acct:163:89
syslog:103:116 settimeofday:164:170 clock_settime:227:112 adjtimex:159:171 clock_adjtime:305:266 ioperm:173:
iopl:172: lookup_dcookie:212:18 vhangup:153:58 fanotify_init:300:262 open_tree:428:428 move_mount:429:429
fsopen:430:430 fsconfig:431:431 fsmount:432:432 fspick:433:433 mount_setattr:442:442 process_madvise:440:440
"""

NEWEST: Final = 452
"""Calls above this number are newer than the table: they answer ENOSYS, so that libc falls back to an older one."""


def _column(text: str, position: int) -> dict[str, int]:
    entries = (entry.split(":") for line in text.splitlines() if not line.startswith("#") for entry in line.split())
    return {entry[0]: int(entry[position]) for entry in entries if entry[position]}


PLAIN: Final = {machine: _column(_PLAIN, i) for i, machine in ((1, "x86_64"), (2, "aarch64"))}
"""Machine -> name -> number of the calls that are allowed whatever their arguments."""

GUARDED: Final = {machine: _column(_GUARDED, i) for i, machine in ((1, "x86_64"), (2, "aarch64"))}
"""Machine -> name -> number of the calls whose arguments decide."""

OF_NO_MONITOR: Final = {machine: _column(_OF_NO_MONITOR, i) for i, machine in ((1, "x86_64"), (2, "aarch64"))}
"""Machine -> name -> number of the calls that a monitor with a kernel of its own has no use for."""
