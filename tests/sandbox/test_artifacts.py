"""What a program leaves in `out` is kept, and nothing that it lays there leads anywhere else."""

import pytest

from runtape.adapters.sandbox import LocalSandbox
from runtape.domain.limits import Limits
from runtape.domain.outcome import OutcomeKind
from tests.sandbox.conftest import WAYS
from tests.sandbox.runs import end_of, left_by, start, until_printed

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.needs("sandbox")]
SMALL = Limits(artifact_bytes=1000, artifacts=5)


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return request.param


async def test_files_are_kept_byte_by_byte_in_the_order_of_their_paths(sandbox: LocalSandbox) -> None:
    left = await left_by(
        sandbox,
        """
import os
os.makedirs("out/a/b")
os.mkdir("out/empty")
for path, content in (("a.txt", b"1"), ("a/b/c", bytes(range(256)) * 1000), ("a-", b"3"), ("empty.txt", b""),
                      ("größe ü 😀.txt", b"4"), (".hidden", b"5"), ("a\\\\b", b"6"), ("exact", b"x" * 65532 * 2)):
    with open("out/" + path, "wb") as file:
        file.write(content)
""",
    )
    assert left.ended.outcome.exit_code == 0
    assert left.files == {
        ".hidden": b"5",
        "a-": b"3",
        "a.txt": b"1",
        "a/b/c": bytes(range(256)) * 1000,
        "a\\b": b"6",
        "empty.txt": b"",
        "exact": b"x" * 65532 * 2,
        "größe ü 😀.txt": b"4",
    }
    assert left.left_out == {}


@pytest.mark.parametrize(
    "script",
    [
        "pass",
        "import os; os.rmdir('out')",
        "import os; os.rmdir('out'); os.symlink('/etc', 'out')",
        "import os; os.rmdir('out'); os.mkfifo('out')",
        "import os; os.rmdir('out'); open('out', 'w').write('a file')",
        "import os; os.mkdir('aside'); open('aside/x', 'w').close()",
        "import os; os.rename('out', 'aside'); open('aside/x', 'w').close()",
    ],
)
async def test_nothing_is_left_when_there_is_nothing_in_a_folder_of_that_name(
    sandbox: LocalSandbox, script: str
) -> None:
    left = await left_by(sandbox, script)
    assert left.ended.outcome.exit_code == 0
    assert (left.files, left.left_out) == ({}, {})


async def test_uploaded_files_lie_there_too(sandbox: LocalSandbox) -> None:
    left = await left_by(sandbox, "open('out/in.txt', 'a').write(' and more')", files={"out/in.txt": b"given"})
    assert left.files == {"in.txt": b"given and more"}


@pytest.mark.parametrize(
    ("script", "reasons"),
    [
        ("os.symlink('/etc/passwd', 'out/x')", {"not_regular": 1}),
        ("os.symlink('main.py', 'main'); os.symlink('../main.py', 'out/x')", {"not_regular": 1}),
        ("os.symlink('/etc', 'out/x'); os.symlink('/proc/1/root', 'out/y')", {"not_regular": 2}),
        ("os.symlink('.', 'out/x'); os.symlink('x', 'out/z')", {"not_regular": 2}),
        ("os.mkfifo('out/x')", {"not_regular": 1}),
        ("socket.socket(socket.AF_UNIX).bind('out/x')", {"not_regular": 1}),
        ("open('out/x\\ny', 'w'); open('out/x\\x1b[2J', 'w'); open(b'out/\\xff', 'w')", {"bad_name": 3}),
        ("open('out/\\u202etxt.exe', 'w'); open('out/\\x85', 'w')", {"bad_name": 2}),
        ("open('out/x', 'w'); os.chmod('out/x', 0); os.mkdir('out/y', 0)", {"unreadable": 2}),
        ("open('out/x', 'wb').truncate(1 << 25)", {"too_large": 1}),
        ("open('out/x', 'wb').truncate(1001)", {"too_large": 1}),
        ("[open('out/%02d' % n, 'wb').truncate(501) for n in range(4)]", {"too_large": 3}),
        ("[open('out/%02d' % n, 'w') for n in range(8)]", {"too_many": 3}),
    ],
)
async def test_what_cannot_be_kept_is_counted_by_its_reason(
    sandbox: LocalSandbox, script: str, reasons: dict[str, int]
) -> None:
    left = await left_by(sandbox, f"import os, socket\n{script}\n", limits=SMALL)
    assert left.ended.outcome.exit_code == 0
    assert left.left_out == reasons


async def test_sparse_file_within_the_limit_is_zeros_and_none_beyond_it_is_read(sandbox: LocalSandbox) -> None:
    script = "for n in range(8): open('out/%d' % n, 'wb').truncate(400)"
    left = await left_by(sandbox, script, limits=SMALL)
    assert left.files == {"0": bytes(400), "1": bytes(400)}
    assert left.left_out == {"too_large": 6}


async def test_one_that_does_not_fit_leaves_room_for_those_after_it(sandbox: LocalSandbox) -> None:
    script = (
        "for name, size in (('a', 600), ('b', 600), ('c', 400), ('d', 1)): open('out/' + name, 'wb').truncate(size)"
    )
    left = await left_by(sandbox, script, limits=SMALL)
    assert {path: len(content) for path, content in left.files.items()} == {"a": 600, "c": 400}
    assert left.left_out == {"too_large": 2}


async def test_deep_folders_and_long_paths_end_somewhere(sandbox: LocalSandbox) -> None:
    script = """
import os
os.chdir("out")
for depth in range(100):
    open("%03d" % depth, "w").close()
    os.mkdir("d")
    os.chdir("d")
os.chdir("/box/out")
for _ in range(5):
    os.mkdir("n" * 250)
    os.chdir("n" * 250)
open("f" * 100, "w").close()
"""
    left = await left_by(sandbox, script)
    assert sorted(path.rpartition("/")[2] for path in left.files) == [f"{depth:03}" for depth in range(32)]
    assert left.left_out == {"bad_name": 1, "too_deep": 1}


async def test_hard_links_are_kept_under_each_name(sandbox: LocalSandbox) -> None:
    script = "import os\nopen('out/a', 'w').write('same')\nos.link('out/a', 'out/b'); os.link('main.py', 'out/c')"
    left = await left_by(sandbox, script)
    assert left.files == {"a": b"same", "b": b"same", "c": script.encode()}


async def test_as_many_files_as_the_disk_holds_are_counted(sandbox: LocalSandbox) -> None:
    script = """
count = 0
try:
    while True:
        open("out/%05d" % count, "w").close()
        count += 1
except OSError:
    print(count)
"""
    left = await left_by(sandbox, script)
    assert len(left.files) == 100
    assert left.left_out["too_many"] > 3900


@pytest.mark.parametrize(
    ("script", "limits", "kind"),
    [
        ("import time; time.sleep(60)", Limits(wall_s=0.5), OutcomeKind.WALL_LIMIT),
        ("while True: pass", Limits(cpu_s=0.3), OutcomeKind.TIME_LIMIT),
        ("while True: print('x' * 1000)", Limits(output_bytes=5000), OutcomeKind.OUTPUT_LIMIT),
        ("import os; os.kill(os.getpid(), 9)", Limits(), OutcomeKind.SIGNALLED),
    ],
)
async def test_files_of_a_program_that_is_stopped_are_kept(
    sandbox: LocalSandbox, script: str, limits: Limits, kind: OutcomeKind
) -> None:
    left = await left_by(sandbox, f"open('out/a', 'w').write('so far')\n{script}", limits=limits)
    assert left.ended.outcome.kind is kind
    assert left.files == {"a": b"so far"}


async def test_files_of_a_program_that_is_killed_are_kept(sandbox: LocalSandbox) -> None:
    script = "open('out/a', 'w').write('so far')\nprint('up')\nimport time; time.sleep(60)"
    key = await start(sandbox, script)
    await until_printed(sandbox, key, b"up")
    await sandbox.kill(key)
    ended = await end_of(sandbox, key)
    assert ended.outcome.kind is OutcomeKind.CANCELLED
    assert [(file.path, file.content) async for file in sandbox.artifacts(key)] == [("a", b"so far")]
    await sandbox.remove(key)


async def test_surviving_process_cannot_change_what_is_collected(sandbox: LocalSandbox) -> None:
    """A daemon swaps a file with a link, and makes another grow, for as long as it lives."""
    script = """
import os
with open("out/swapped", "w") as file:
    file.write("honest")
ready, told = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(10**9):
            os.symlink("/etc/passwd", "out/link")
            os.rename("out/swapped", "spare")
            os.rename("out/link", "out/swapped")
            os.rename("out/swapped", "gone")
            os.rename("spare", "out/swapped")
            with open("out/growing", "a") as file:
                file.write("x" * 1000)
            if number == 5:
                os.write(told, b"1")
    os._exit(0)
os.read(ready, 1)
"""
    left = await left_by(sandbox, script)
    assert left.ended.outcome.exit_code == 0
    assert left.files.keys() <= {"swapped", "growing", "link"}
    assert left.files.get("swapped", b"honest") == b"honest"
    assert left.left_out.keys() <= {"not_regular", "too_large"}


async def test_none_are_kept_where_the_operator_wants_none(sandbox: LocalSandbox) -> None:
    left = await left_by(sandbox, "open('out/a', 'w').close()", limits=Limits(artifacts=0))
    assert (left.files, left.left_out) == ({}, {})
