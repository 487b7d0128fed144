"""Packages: what a run asks for is there, nothing of it runs or writes outside of a box, and nobody sees another's."""

import asyncio
import json
import os
import shutil
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from runtape.adapters.sandbox import LocalSandbox, PackageOptions
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind, Phase
from tests.sandbox.conftest import WAYS, is_made
from tests.sandbox.package_index import Index, open_index, wheel
from tests.sandbox.runs import Result, finish, run, start, until_printed

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.needs("sandbox")]

WAITED_S = 20.0
BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def index() -> Iterator[Index]:
    with open_index() as index:
        index.add(wheel("one", "1.0", {"one.py": "version = '1.0'\n"}))
        index.add(wheel("one", "2.0", {"one.py": "version = '2.0'\n"}))
        index.add(wheel("two", "1.0", {"two/__init__.py": "import one\n", "two/data": "x"}, requires=["one<2"]))
        index.add(("sdist-1.0.tar.gz", b"not even looked at"))
        yield index


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tmp_path_factory.mktemp("packages"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(way: str, folder: Path, index: Index) -> AsyncIterator[LocalSandbox]:
    async with LocalSandbox(folder / way, **WAYS[way], packages=options(index)) as opened:
        await is_made(opened, way)
        yield opened


def options(index: Index, **changes: object) -> PackageOptions:
    return PackageOptions(**{"index_url": index.url, **changes})  # pyright: ignore[reportArgumentType]


def layers_in(data: Path) -> set[str]:
    """Return the layers that are there, whoever may list them."""
    shown = data / "packages" / "layers"
    mode = stat.S_IMODE(shown.stat().st_mode)
    shown.chmod(0o700)
    try:
        return set(os.listdir(shown))
    finally:
        shown.chmod(mode)


async def happens(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, WAITED_S)


async def until_left(data: Path, count: int) -> set[str]:
    """Return the layers once no more are there than `count`."""
    async with asyncio.timeout(WAITED_S):
        while len(found := layers_in(data)) > count:  # noqa: ASYNC110 - a thread removes them and tells nobody
            await asyncio.sleep(0.01)
    return found


def failed(result: Result, reason: str = "unresolved") -> str:
    """Return the words of a resolver that must have failed for `reason`."""
    assert (result.outcome.phase, result.outcome.reason) == (Phase.RESOLVE, reason), result.outcome
    assert result.outcome.message
    assert result.stdout == b""
    assert result.usage.wall_ns == 0
    assert result.usage.output_bytes == len(result.stderr)
    return result.stderr.decode()


# What a run gets


async def test_packages_and_what_they_need_are_there_again_and_again(sandbox: LocalSandbox) -> None:
    script = "import one, two; print(one.version, open(two.__path__[0] + '/data').read())"
    for _ in range(2):
        result = await run(sandbox, script, requirements=("two",))
        assert result.text == "1.0 x"
        assert result.stderr == b""


async def test_run_without_requirements_sees_none(sandbox: LocalSandbox) -> None:
    await run(sandbox, "import one", requirements=("one",))
    result = await run(sandbox, "import sys\nprint(*sys.path, sep='\\n')\nimport one")
    assert result.outcome.exit_code == 1
    assert b"layers" not in result.stdout
    assert b"No module named 'one'" in result.stderr


async def test_packages_come_behind_the_standard_library_and_before_those_of_the_system(
    sandbox: LocalSandbox, index: Index
) -> None:
    index.add(wheel("order", "1.0", {"json.py": "raise SystemExit('shadowed')", "order.py": ""}))
    script = "import json, os, sys, order\nlayer = os.path.dirname(order.__file__)\n"
    script += "at = sys.path.index(layer)\nprint(at > sys.path.index(os.path.dirname(os.__file__)), "
    script += "[path for path in sys.path[:at] if path.endswith('-packages')], sys.path[0], json.dumps(1))"
    assert (await run(sandbox, script, requirements=("order",))).text == "True [] /box 1"


async def test_bytecode_is_there_and_used(sandbox: LocalSandbox) -> None:
    script = "import os, one\nprint(os.path.exists(one.__cached__), "
    script += (
        "open(one.__cached__, 'rb').read(8)[4:].hex(), one.__spec__.loader.get_code('one').co_filename == one.__file__)"
    )
    assert (await run(sandbox, script, requirements=("one",))).text == "True 01000000 True"


async def test_console_scripts_and_child_interpreters_find_them(sandbox: LocalSandbox, index: Index) -> None:
    entry = {"tool.py": "import one\ndef main(): print('tool', one.version)\n"}
    entry["tool-1.0.dist-info/entry_points.txt"] = "[console_scripts]\ntool = tool:main\n"
    index.add(wheel("tool", "1.0", entry, requires=["one==1.0"]))
    script = "import subprocess, sys\nprint(subprocess.run(['tool'], capture_output=True, text=True))\n"
    script += "print(subprocess.run([sys.executable, '-c', 'import one; print(one.version)'], capture_output=True))"
    text = (await run(sandbox, script, requirements=("tool",))).text
    assert "tool 1.0" in text
    assert "b'1.0" in text


async def test_environment_of_the_request_wins(sandbox: LocalSandbox) -> None:
    env = {"PYTHONPATH": "/box/mine", "PATH": "/usr/bin"}
    script = "import one, os; print(os.environ['PYTHONPATH'], os.environ['PATH'])"
    assert (await run(sandbox, script, requirements=("one",), env=env)).text == "/box/mine /usr/bin"


async def test_time_of_resolving_counts_for_no_limit(sandbox: LocalSandbox, index: Index) -> None:
    index.add(wheel("slow"))
    begun = index.hold("slow")
    key = await start(sandbox, "import slow; print('ran')", requirements=("slow",), limits=Limits(wall_s=0.4))
    await happens(begun)
    await asyncio.sleep(0.5)  # what is shown is that this time has no effect
    index.let("slow")
    result = await finish(sandbox, key)
    assert result.text == "ran"
    assert result.usage.wall_ns < 0.4e9


# What cannot be had


async def test_conflict_is_told_in_the_words_of_the_resolver(sandbox: LocalSandbox, folder: Path, way: str) -> None:
    before = layers_in(folder / way)
    result = await run(sandbox, "print(1)", requirements=("one>=2", "two"))
    words = failed(result)
    assert "two" in words and "one<2" in words and "unsatisfiable" in words
    assert result.outcome.kind is OutcomeKind.EXITED
    assert result.outcome.exit_code == 1
    assert layers_in(folder / way) == before


async def test_unknown_package_is_told(sandbox: LocalSandbox) -> None:
    assert "nobody-made-this" in failed(await run(sandbox, "print(1)", requirements=("nobody-made-this",)))


async def test_source_distribution_is_not_built(sandbox: LocalSandbox, index: Index) -> None:
    words = failed(await run(sandbox, "print(1)", requirements=("sdist",)))
    assert "no usable wheels" in words


async def test_index_that_does_not_answer_is_told(
    way: str, tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    address = "http://somebody:s3cr3t-w0rd@127.0.0.1:1/simple"
    async with LocalSandbox(tmp_path, **WAYS[way], packages=options(index, index_url=address)) as sandbox:
        words = failed(await run(sandbox, "print(1)", requirements=("one",)), "index_unreachable")
    assert "127.0.0.1:1/simple" in words
    assert "s3cr3t-w0rd" not in words
    assert str(tmp_path) not in words


async def test_old_set_is_used_while_the_index_does_not_answer(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with open_index() as index:
        index.add(wheel("one"))
        address, reuse = options(index), options(index, reuse_s=0.0)
        async with LocalSandbox(tmp_path, **WAYS[way], packages=address) as sandbox:
            assert (await run(sandbox, "import one; print(one.version)", requirements=("one",))).text == "1.0"
        index.add(wheel("one", "1.1"))
        async with LocalSandbox(tmp_path, **WAYS[way], packages=reuse) as sandbox:
            assert (await run(sandbox, "import one; print(one.version)", requirements=("one",))).text == "1.1"
    shutil.rmtree(tmp_path / "packages" / "wheels")
    async with LocalSandbox(tmp_path, **WAYS[way], packages=reuse) as sandbox:
        assert (await run(sandbox, "import one; print(one.version)", requirements=("one",))).text == "1.1"
    assert len(layers_in(tmp_path)) == 1


async def test_credentials_reach_the_index_and_nobody_else(way: str, tmp_path: Path, index: Index) -> None:
    address = index.url.replace("//", "//somebody:s3cr3t-w0rd@")
    async with LocalSandbox(tmp_path, **WAYS[way], packages=options(index, index_url=address)) as sandbox:
        script = "import one, os; print(dict(os.environ), open('/proc/self/mountinfo').read())"
        result = await run(sandbox, script, requirements=("one",))
        words = failed(await run(sandbox, "print(1)", requirements=("one>9",)))
    assert "somebody:s3cr3t-w0rd" in index.credentials
    assert "s3cr3t" not in result.text + words
    kept = [path for path in (tmp_path / "packages" / "sets").iterdir() if b"s3cr3t" in path.read_bytes()]
    assert kept == []


async def test_resolver_that_takes_too_long_is_stopped(way: str, tmp_path: Path, index: Index) -> None:
    index.add(wheel("endless"))
    index.hold("endless")
    short = options(index, resolve_timeout_s=0.3)
    async with LocalSandbox(tmp_path, **WAYS[way], packages=short) as sandbox:
        result = await run(sandbox, "print(1)", requirements=("endless",))
        failed(result, "resolve_timeout")
        assert result.outcome.kind is OutcomeKind.WALL_LIMIT
        assert await until_left(tmp_path, 0) == set()


async def test_set_that_is_too_large_is_told(way: str, tmp_path: Path, index: Index) -> None:
    index.add(wheel("large", "1.0", {"large.py": "", "data": bytes(3 << 20)}))
    index.add(wheel("many", "1.0", {f"part{number}": bytes(256 << 10) for number in range(12)}))
    async with LocalSandbox(tmp_path, **WAYS[way], packages=options(index, max_bytes=2 << 20)) as sandbox:
        for name in ("large", "many"):
            result = await run(sandbox, "print(1)", requirements=(name,))
            failed(result, "packages_too_large")
            assert result.outcome.kind is OutcomeKind.OUTPUT_LIMIT
            assert "packages.max_bytes" in str(result.outcome.message)
        assert layers_in(tmp_path) == set()


@pytest.mark.needs("patience")
async def test_bomb_of_files_is_stopped_while_it_unfolds(way: str, tmp_path: Path, index: Index) -> None:
    index.add(wheel("bomb", "1.0", {f"part{number}": bytes(1 << 20) for number in range(300)}))
    async with LocalSandbox(tmp_path, **WAYS[way], packages=options(index, max_bytes=2 << 20)) as sandbox:
        failed(await run(sandbox, "print(1)", requirements=("bomb",)), "packages_too_large")
        unfolded = sum(path.stat().st_size for path in (tmp_path / "packages" / "wheels").rglob("*") if path.is_file())
    assert unfolded < 250 << 20


async def test_packages_that_are_switched_off_end_the_run(way: str, tmp_path: Path) -> None:
    async with LocalSandbox(tmp_path, **WAYS[way]) as sandbox:
        result = await run(sandbox, "print(1)", requirements=("one",))
        assert (result.outcome.kind, result.outcome.reason) == (OutcomeKind.SANDBOX_ERROR, "packages_disabled")
        assert (await run(sandbox, "import os; print(os.listdir('/runtape'))")).text.count("layers") == 0
    assert not (tmp_path / "packages").exists()


# Hostile packages


async def test_nothing_of_a_package_runs_by_itself(sandbox: LocalSandbox, index: Index, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    code = f"import os; print('ran'); open({str(canary)!r}, 'w')"
    files = {
        "quiet.py": "",
        "evil.pth": code + "\n",
        "sitecustomize.py": code,
        "usercustomize.py": code,
        "setup.py": code,
    }
    index.add(wheel("quiet", "1.0", files))
    result = await run(sandbox, "import quiet, sys; print('evil' in sys.modules)", requirements=("quiet",))
    assert result.text == "False"
    assert (await run(sandbox, "print('clean')")).stdout == b"clean\n"
    assert not canary.exists()


@pytest.mark.parametrize(
    "files",
    [
        {"../../../../../../../../../{canary}": "x"},
        {"{canary}": "x"},
        {"climb-1.0.data/data/../../../../../../../../../{canary}": "x"},
        {"climb-1.0.data/scripts/../../../../../../../../../{canary}": "#!python\n"},
        {"climb-1.0.data/headers/../../../../../../../../{canary}": "x"},
    ],
    ids=["climbing", "absolute", "data", "scripts", "headers"],
)
async def test_wheel_that_climbs_writes_nothing_outside(
    sandbox: LocalSandbox, index: Index, tmp_path: Path, files: dict[str, str]
) -> None:
    canary = tmp_path / "canary"
    named = {
        path.replace("{canary}", str(canary).lstrip("/") if ".." in path else str(canary)): text
        for path, text in files.items()
    }
    index.add(wheel("climb", f"1.{len(index.asked)}", {"climb.py": "", **named}))
    await run(sandbox, "import climb", requirements=("climb",))
    assert not canary.exists()


async def test_record_that_lies_harms_nobody(sandbox: LocalSandbox, index: Index, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    record = f"../../../../../../../..{canary},,\n{canary},,\nlies.py,,\n"
    index.add(wheel("lies", "1.0", {"lies.py": ""}, record=record))
    await run(sandbox, "import lies", requirements=("lies",))
    assert canary.read_text() == "untouched"


async def test_links_in_a_wheel_lead_nowhere(sandbox: LocalSandbox, index: Index) -> None:
    index.add(wheel("links", "1.0", {"links.py": ""}, symlinks={"outside": "/etc/shadow", "folder": "/etc"}))
    script = "import links, os\nbase = os.path.dirname(links.__file__)\n"
    script += "print([name for name in os.listdir(base) if os.path.islink(base + '/' + name)])"
    result = await run(sandbox, script, requirements=("links",))
    assert result.outcome.phase is Phase.RESOLVE or result.text == "[]"


# What a program sees of others

LAYER = "import one, os; layer = os.path.dirname(one.__file__); layers = os.path.dirname(layer)\n"


async def test_layers_can_be_neither_listed_nor_changed(sandbox: LocalSandbox) -> None:
    script = f"{LAYER}import errno, json\n" + (
        "def tried(action):\n    try:\n        action()\n    except OSError as error:\n"
        "        return errno.errorcode[error.errno]\n    return 'OK'\n"
        "print(json.dumps({\n"
        "    'own': tried(lambda: os.listdir(layer)),\n"
        "    'list': tried(lambda: os.listdir(layers)),\n"
        "    'open': tried(lambda: os.open(layers, os.O_RDONLY)),\n"
        "    'mode': tried(lambda: os.chmod(layers, 0o777)),\n"
        "    'guess': tried(lambda: os.listdir(layers + '/' + '0' * 32)),\n"
        "    'new': tried(lambda: open(layer + '/new.py', 'w')),\n"
        "    'change': tried(lambda: open(one.__file__, 'a')),\n"
        "    'remove': tried(lambda: os.remove(one.__file__)),\n"
        "    'own mode': tried(lambda: os.chmod(one.__file__, 0o777)),\n"
        "    'fd': tried(lambda: os.listdir('/proc/self/fd/%d' % os.open(layers, os.O_PATH))),\n"
        "}))"
    )
    answers = json.loads((await run(sandbox, script, requirements=("one",))).text)
    assert answers.pop("change") in ("EACCES", "EROFS")  # under root it is another user's file to begin with
    unchanged = dict.fromkeys(("mode", "new", "remove", "own mode"), "EROFS")
    unseen = {"list": "EACCES", "open": "EACCES", "guess": "ENOENT", "fd": "EACCES"}
    assert answers == {"own": "OK", **unchanged, **unseen}


async def test_no_name_of_another_layer_is_in_proc(sandbox: LocalSandbox, folder: Path, way: str) -> None:
    await run(sandbox, "import two", requirements=("two",))
    files = ("maps", "mountinfo", "mounts", "mountstats", "smaps", "environ", "cmdline")
    script = f"{LAYER}print(layer)\nfor name in {files}:\n    print(open('/proc/self/' + name, 'rb').read())"
    result = await run(sandbox, script, requirements=("one",))
    own = result.text.splitlines()[0].rpartition("/")[2]
    others = layers_in(folder / way) - {own}
    assert others
    assert own in result.text
    assert not [name for name in others if name in result.text]


# Sharing, leaving, crashing


async def test_runs_that_want_the_same_share_one_resolve(sandbox: LocalSandbox, index: Index) -> None:
    index.add(wheel("shared"))
    before = index.asked.count("shared")
    begun = index.hold("shared")
    keys = [await start(sandbox, "import shared; print('ran')", requirements=("shared",)) for _ in range(4)]
    await happens(begun)
    await sandbox.kill(keys.pop())
    index.let("shared")
    assert [(await finish(sandbox, key)).text for key in keys] == ["ran"] * 3
    assert index.asked.count("shared") == before + 1


async def test_kill_while_resolving_cancels_the_run_and_the_resolver(way: str, tmp_path: Path, index: Index) -> None:
    index.add(wheel("killed"))
    begun = index.hold("killed")
    async with LocalSandbox(tmp_path, **WAYS[way], packages=options(index)) as sandbox:
        key = await start(sandbox, "print(1)", requirements=("killed",))
        await happens(begun)
        await sandbox.kill(key)
        result = await finish(sandbox, key)
        assert result.outcome == Outcome(kind=OutcomeKind.CANCELLED, phase=Phase.RESOLVE)
        assert await until_left(tmp_path, 0) == set()
        index.let("killed")
        assert (await run(sandbox, "import killed; print(1)", requirements=("killed",))).text == "1"


async def test_lease_that_ends_while_resolving_ends_the_run(sandbox: LocalSandbox, index: Index) -> None:
    index.add(wheel("leased"))
    index.hold("leased")
    key = await start(sandbox, "print(1)", requirements=("leased",), lease_s=0.5)
    result = await finish(sandbox, key)
    assert (result.outcome.kind, result.outcome.reason) == (OutcomeKind.SANDBOX_ERROR, "lease_expired")
    assert result.outcome.phase is Phase.RESOLVE
    index.let("leased")


async def test_closing_while_resolving_leaves_nothing(way: str, tmp_path: Path, index: Index) -> None:
    index.add(wheel("closed"))
    begun = index.hold("closed")
    async with LocalSandbox(tmp_path, **WAYS[way], packages=options(index)) as sandbox:
        await start(sandbox, "print(1)", requirements=("closed",))
        await happens(begun)
    assert layers_in(tmp_path) == set()
    assert os.listdir(tmp_path / "packages" / "sets") == []
    index.let("closed")


async def test_what_a_crash_left_is_swept_and_what_is_whole_stays(way: str, tmp_path: Path, index: Index) -> None:
    async with LocalSandbox(tmp_path, **WAYS[way], packages=options(index)) as sandbox:
        await run(sandbox, "import one", requirements=("one",))
    (whole,) = layers_in(tmp_path)
    packages = tmp_path / "packages"
    (packages / "layers" / ("0" * 32)).mkdir()
    (packages / "layers" / ("0" * 32) / "half.py").write_text("")
    (packages / "sets" / "torn").write_text('{"layer": "')
    lost = {"layer": "1" * 32, "size_bytes": 1, "resolved_at_s": 1, "boot": BOOT}
    (packages / "sets" / "lost").write_text(json.dumps(lost))
    asked = len(index.asked)
    async with LocalSandbox(tmp_path, **WAYS[way], packages=options(index)) as sandbox:
        assert layers_in(tmp_path) == {whole}
        assert len(os.listdir(packages / "sets")) == 1
        assert (await run(sandbox, "import one; print(one.version)", requirements=("one",))).text == "2.0"
    assert len(index.asked) == asked


async def test_longest_unused_set_goes_and_never_one_that_is_in_use(way: str, tmp_path: Path, index: Index) -> None:
    for name in ("first", "second", "third"):
        index.add(wheel(name, "1.0", {f"{name}.py": "", "data": bytes(600 << 10)}))
    small = options(index, cache_bytes=1 << 20)
    async with LocalSandbox(tmp_path, **WAYS[way], packages=small) as sandbox:
        key = await start(
            sandbox, "import first; print('up', flush=True); input(); import first", requirements=("first",), stdin=b""
        )
        held = await start(
            sandbox, "import first, time; print('up', flush=True); time.sleep(60)", requirements=("first",)
        )
        await until_printed(sandbox, held, b"up")
        await finish(sandbox, key)
        (in_use,) = layers_in(tmp_path)
        await run(sandbox, "import second", requirements=("second",))
        assert in_use in layers_in(tmp_path)
        await sandbox.kill(held)
        await finish(sandbox, held)
        await run(sandbox, "import third", requirements=("third",))
        assert in_use not in await until_left(tmp_path, 1)
