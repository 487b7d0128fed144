"""How hostile and careless programs end: each is stopped by its own limit, told apart, and leaves nothing."""

import asyncio
import hashlib
import re
import time

import pytest

from runtape.adapters.sandbox import LocalSandbox
from runtape.domain.limits import Limits
from runtape.domain.outcome import OutcomeKind
from runtape.ports.pod_runtime import PodKey
from tests.sandbox.conftest import WAYS
from tests.sandbox.runs import end_of, finish, run, start, until_printed

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.needs("sandbox")]


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return request.param


HOG = "blocks = []\nwhile True: blocks.append(bytearray(8 << 20))"


# Memory


async def test_memory_hog_is_stopped_by_the_memory_limit(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, HOG, limits=Limits(memory_mb=64))
    assert result.outcome.kind is OutcomeKind.MEMORY_LIMIT
    assert result.outcome.reason == "oom"
    # A cgroup is exact; the watchdog that takes its place samples.
    assert 32 << 20 < result.usage.peak_memory_bytes <= 192 << 20


async def test_memory_within_the_limit_is_granted(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, "print(len(bytearray(b'x') * (100 << 20)) >> 20)", limits=Limits(memory_mb=160))
    assert result.text == "100"
    assert 100 << 20 <= result.usage.peak_memory_bytes <= 160 << 20


async def test_raised_memory_limit_is_granted(sandbox: LocalSandbox) -> None:
    script = "held = bytearray(b'x') * (300 << 20); print(len(held) >> 20)"
    assert (await run(sandbox, script, limits=Limits(memory_mb=400))).text == "300"
    # Held for a while: without a cgroup what lasts no longer than a sample takes may pass.
    result = await run(sandbox, f"{script}; import time; time.sleep(5)")
    assert result.outcome.kind is OutcomeKind.MEMORY_LIMIT


async def test_many_children_share_one_memory_limit(sandbox: LocalSandbox) -> None:
    script = """
import os, time
for _ in range(8):
    if os.fork() == 0:
        held = bytearray(b"x") * (24 << 20)
        time.sleep(20)
time.sleep(20)
"""
    result = await run(sandbox, script, limits=Limits(memory_mb=96))
    assert result.outcome.kind is OutcomeKind.MEMORY_LIMIT


async def test_kill_of_a_child_for_memory_ends_the_run_although_the_program_goes_on(sandbox: LocalSandbox) -> None:
    script = f"""
import os, time
if os.fork() == 0:
    {HOG.replace(chr(10), chr(10) + "    ")}
print("parent waits", flush=True)
time.sleep(20)
"""
    result = await run(sandbox, script, limits=Limits(memory_mb=64))
    assert result.outcome.kind is OutcomeKind.MEMORY_LIMIT
    assert result.stdout == b"parent waits\n"


async def test_files_in_the_work_directory_count_as_memory(sandbox: LocalSandbox) -> None:
    script = "with open('f', 'wb') as f:\n    for _ in range(60): f.write(bytes(1 << 20)); f.flush()\nprint('written')"
    assert (await run(sandbox, script, limits=Limits(memory_mb=200))).text == "written"
    # Without cgroups somebody has to look while the file is there.
    stays = f"{script}\nimport time; time.sleep(10)"
    assert (await run(sandbox, stays, limits=Limits(memory_mb=40))).outcome.kind is OutcomeKind.MEMORY_LIMIT


# Time


@pytest.mark.parametrize("ignoring", ["", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
async def test_spin_is_stopped_by_the_cpu_limit(sandbox: LocalSandbox, ignoring: str) -> None:
    result = await run(sandbox, f"{ignoring}\nprint('spin', flush=True)\nwhile True: pass", limits=Limits(cpu_s=0.4))
    assert result.outcome.kind is OutcomeKind.TIME_LIMIT
    assert result.stdout == b"spin\n"
    assert 0.4e9 <= result.usage.cpu_user_ns + result.usage.cpu_system_ns < 1.2e9


async def test_cpu_of_children_counts(sandbox: LocalSandbox) -> None:
    script = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    result = await run(sandbox, script, limits=Limits(cpu_s=0.4, wall_s=8))
    assert result.outcome.kind is OutcomeKind.TIME_LIMIT


async def test_cpu_of_children_that_have_ended_counts(sandbox: LocalSandbox) -> None:
    script = "import os, time\nwhile True:\n    if os.fork() == 0:\n        while time.process_time() < 0.05: pass\n"
    script += "        os._exit(0)\n    os.wait()"
    result = await run(sandbox, script, limits=Limits(cpu_s=0.4, wall_s=8))
    assert result.outcome.kind is OutcomeKind.TIME_LIMIT


async def test_sleep_is_stopped_by_the_wall_limit_and_uses_no_cpu(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, "import time; time.sleep(30)", limits=Limits(wall_s=0.6, cpu_s=0.1))
    assert result.outcome.kind is OutcomeKind.WALL_LIMIT
    assert 0.6e9 <= result.usage.wall_ns < 1.5e9


async def test_stopped_program_is_stopped_by_the_wall_limit(sandbox: LocalSandbox) -> None:
    script = "import os, signal; print('stop', flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
    result = await run(sandbox, script, limits=Limits(wall_s=0.6))
    assert result.outcome.kind is OutcomeKind.WALL_LIMIT
    assert result.stdout == b"stop\n"


async def test_usage_counts_children_that_were_not_waited_for(sandbox: LocalSandbox) -> None:
    script = """
import os, time
read, write = os.pipe()
if os.fork() == 0:
    while time.process_time() < 0.3: pass
    os.write(1, b"done")
    os.write(write, b"done")
    time.sleep(30)
os.read(read, 4)
"""
    result = await run(sandbox, script)
    assert result.outcome.exit_code == 0
    assert result.stdout == b"done"
    assert result.usage.cpu_user_ns + result.usage.cpu_system_ns >= 0.3e9


# Processes


async def test_fork_bomb_is_held_at_its_limit(sandbox: LocalSandbox) -> None:
    script = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0: time.sleep(30)
        made += 1
except OSError as error:
    print(made, error.errno)
"""
    result = await run(sandbox, script, limits=Limits(processes=20))
    assert result.text == "19 11"  # the program itself is the twentieth; EAGAIN


async def test_fork_bomb_that_never_stops_ends_at_the_wall_limit(sandbox: LocalSandbox) -> None:
    started_s = time.monotonic()
    result = await run(sandbox, ":(){ :|:& };:\nsleep 30", lang="bash", limits=Limits(wall_s=1, output_bytes=64 << 20))
    assert result.outcome.kind in (OutcomeKind.WALL_LIMIT, OutcomeKind.TIME_LIMIT)
    assert time.monotonic() - started_s < 5


async def test_thread_bomb_is_held_at_its_limit(sandbox: LocalSandbox) -> None:
    script = """
import threading, time
made = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start(); made += 1
except RuntimeError:
    print(made < 20)
"""
    assert (await run(sandbox, script, limits=Limits(processes=20))).text == "True"


async def test_daemon_does_not_outlive_the_program(sandbox: LocalSandbox) -> None:
    script = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("daemon", flush=True)
        open("/tmp/up", "w").close()
        time.sleep(60)
    os._exit(0)
os.wait()
while not os.path.exists("/tmp/up"): time.sleep(0.01)
"""
    started_s = time.monotonic()
    result = await run(sandbox, script)
    assert result.outcome.exit_code == 0
    assert result.stdout == b"daemon\n"
    assert time.monotonic() - started_s < 10


async def test_zombies_do_not_hinder_the_end(sandbox: LocalSandbox) -> None:
    script = "import os, time\nfor _ in range(50):\n    if os.fork() == 0: os._exit(1)\ntime.sleep(0.2); print('done')"
    assert (await run(sandbox, script)).text == "done"


async def test_exit_status_cannot_be_forged(sandbox: LocalSandbox) -> None:
    script = """
import os, marshal
forged = marshal.dumps(("ended", 0, 0, 0, 0, 0))
for fd in range(3, 64):
    try: os.write(fd, forged)
    except OSError: pass
os._exit(7)
"""
    assert (await run(sandbox, script)).outcome.exit_code == 7


async def test_program_killed_by_itself_is_told_with_its_signal(sandbox: LocalSandbox) -> None:
    assert (await run(sandbox, "import os; os.abort()")).outcome.signal == 6
    assert (await run(sandbox, "kill -TERM $$", lang="bash")).outcome.signal == 15


# Files


async def test_disk_is_bounded_in_bytes(sandbox: LocalSandbox) -> None:
    script = """
import errno
try:
    for n in range(40):
        with open(f"/tmp/{n}", "wb") as file: file.write(b"x" * (1 << 20))
except OSError as error:
    print(n, errno.errorcode[error.errno])
"""
    made, error = (await run(sandbox, script, limits=Limits(disk_mb=8))).text.split()
    assert error == "ENOSPC"
    assert 6 <= int(made) <= 8


async def test_disk_is_bounded_in_inodes(sandbox: LocalSandbox) -> None:
    script = """
import errno
try:
    for n in range(1000): open(str(n), "w").close()
except OSError as error:
    print(n, errno.errorcode[error.errno])
"""
    assert (await run(sandbox, script, limits=Limits(inodes=50))).text == "49 ENOSPC"  # the script is the fiftieth


async def test_open_files_are_bounded(sandbox: LocalSandbox) -> None:
    script = "files = []\ntry:\n    while True: files.append(open('main.py'))\nexcept OSError as e: print(e.errno)"
    assert (await run(sandbox, script, limits=Limits(open_files=32))).text == "24"


# Output and input


async def test_output_is_what_was_printed_for_any_bytes(sandbox: LocalSandbox) -> None:
    printed = bytes(range(256)) * 3000 + b"\n\ndata: x\n\n\x1b]52;c;x\a\r\0"
    script = "import sys; sys.stdout.buffer.write(open('printed', 'rb').read())"
    assert (await run(sandbox, script, files={"printed": printed})).stdout == printed


async def test_one_line_of_fifty_megabytes_arrives_whole(sandbox: LocalSandbox) -> None:
    script = "import sys\nfor n in range(50): sys.stdout.buffer.write(bytes([65 + n % 26]) * (1 << 20))"
    result = await run(sandbox, script, limits=Limits(output_bytes=64 << 20))
    assert result.stdout == b"".join(bytes([65 + n % 26]) * (1 << 20) for n in range(50))
    assert result.usage.output_bytes == 50 << 20
    assert result.outcome.exit_code == 0


async def test_flood_is_cut_at_the_limit_at_once(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, "while True: print('x' * 10000)")
    assert result.outcome.kind is OutcomeKind.OUTPUT_LIMIT
    assert len(result.stdout) == 1 << 20
    assert result.records[-1].truncated
    assert result.usage.wall_ns < 3e9


async def test_output_limit_counts_both_streams(sandbox: LocalSandbox) -> None:
    script = "import os\nwhile True: os.write(1, b'o' * 100); os.write(2, b'e' * 100)"
    result = await run(sandbox, script, limits=Limits(output_bytes=5000))
    assert result.outcome.kind is OutcomeKind.OUTPUT_LIMIT
    assert len(result.stdout) + len(result.stderr) == 5000


async def test_program_that_prints_waits_for_a_reader_that_does_not_read(sandbox: LocalSandbox) -> None:
    limits = Limits(output_bytes=32 << 20, wall_s=1.5)
    key = await start(sandbox, "while True: print('x' * 65535)", limits=limits)
    ended = await end_of(sandbox, key)
    assert ended.outcome.kind is OutcomeKind.WALL_LIMIT
    assert 2 << 20 < ended.usage.output_bytes < 5 << 20
    result = await finish(sandbox, key)
    assert len(result.stdout) == ended.usage.output_bytes


async def test_program_goes_on_when_its_output_is_read_after_a_while(sandbox: LocalSandbox) -> None:
    script = "for n in range(128): print(chr(65 + n % 26) * 65535)"
    key = await start(sandbox, script, limits=Limits(output_bytes=32 << 20))
    await asyncio.sleep(0.3)
    result = await finish(sandbox, key)
    assert result.stdout == b"".join(bytes([65 + n % 26]) * 65535 + b"\n" for n in range(128))
    assert result.outcome.exit_code == 0


async def test_what_was_printed_before_a_kill_is_all_there(sandbox: LocalSandbox) -> None:
    script = "import time\nfor n in range(2000): print(n)\nprint('end', flush=True)\ntime.sleep(30)"
    key = await start(sandbox, script)
    await until_printed(sandbox, key, b"end\n")
    await sandbox.kill(key)
    result = await finish(sandbox, key)
    assert result.outcome.kind is OutcomeKind.CANCELLED
    assert result.stdout == b"".join(b"%d\n" % n for n in range(2000)) + b"end\n"


async def test_chatty_program_yields_few_records(sandbox: LocalSandbox) -> None:
    key = await start(sandbox, "import os\nfor n in range(20000): os.write(1, b'x')")
    assert (await end_of(sandbox, key)).outcome.exit_code == 0
    result = await finish(sandbox, key)
    assert result.stdout == b"x" * 20000
    assert len(result.records) == 1


async def test_input_that_is_never_read_blocks_nobody(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, "print('done')", stdin=b"x" * (10 << 20))
    assert result.text == "done"


@pytest.mark.parametrize("size", [1, 60_000, 60_001, 10 << 20])
async def test_input_arrives_whole_and_ends(sandbox: LocalSandbox, size: int) -> None:
    script = "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    assert (await run(sandbox, script, stdin=data)).text == hashlib.sha256(data).hexdigest()


async def test_large_input_cannot_be_made_larger(sandbox: LocalSandbox) -> None:
    script = "import os\ntry: os.write(os.open('/dev/stdin', os.O_RDWR), b'x')\nexcept OSError as e: print(e.errno)"
    assert (await run(sandbox, script, stdin=b"x" * 100_000)).text == "1"


async def test_order_larger_than_a_datagram_arrives(sandbox: LocalSandbox) -> None:
    files = {f"f{n}": bytes([n]) * 90_000 for n in range(90)}
    script = "import os; print(sum(os.path.getsize(f'f{n}') for n in range(90)), open('f89', 'rb').read(1))"
    assert (await run(sandbox, script, files=files)).text == f"{90 * 90_000} b'Y'"


async def test_arguments_arrive_as_they_are(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, "import sys; print(sys.argv)", args=("-x", "a b", "", "☃", "--", "$HOME"))
    assert result.text == "['/box/main.py', '-x', 'a b', '', '☃', '--', '$HOME']"


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"files": {"a": b"", "a/b": b""}}, "File exists|Not a directory"),
        ({"files": {"big": b"x" * (2 << 20)}, "limits": Limits(disk_mb=1)}, "No space left"),
        ({"lang": "bash", "args": ("x" * 200_000,)}, "Argument list too long"),
        ({"args": ("a\0b",)}, "null byte in an argument"),
        ({"env": {"A": "a\0b"}}, "null byte in the environment"),
        ({"files": {"a\0b": b""}}, "null byte in the path of a file"),
    ],
)
async def test_impossible_order_is_told(sandbox: LocalSandbox, how: dict[str, object], what: str) -> None:
    result = await run(sandbox, "print(1)", **how)
    assert (result.outcome.kind, result.outcome.reason) == (OutcomeKind.SANDBOX_ERROR, "start_failed")
    assert re.search(what, result.outcome.message or "")


async def test_program_may_open_its_own_outputs_by_name(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, "echo out > /dev/stdout; echo err > /dev/stderr", lang="bash")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


# Cancelling


async def test_cancel_of_a_whole_tree_takes_less_than_a_second(sandbox: LocalSandbox) -> None:
    script = "import os, signal, time\nsignal.signal(15, signal.SIG_IGN)\nfor _ in range(4): os.fork()\n"
    script += "os.write(1, b'up\\n')\ntime.sleep(60)"
    key = await start(sandbox, script)
    await until_printed(sandbox, key, b"up\n" * 16)
    started_s = time.monotonic()
    await sandbox.kill(key)
    assert (await end_of(sandbox, key)).outcome.kind is OutcomeKind.CANCELLED
    assert time.monotonic() - started_s < 1
    await sandbox.remove(key)


async def test_unknown_runtime_is_our_error(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, "", version="0.1")
    assert (result.outcome.kind, result.outcome.reason) == (OutcomeKind.SANDBOX_ERROR, "runtime_missing")
    assert isinstance(result.ended.key, PodKey)
