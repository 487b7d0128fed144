"""A program that is forked from a warm interpreter behaves as one that is exec'd."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from runtape.adapters.sandbox import LocalSandbox
from runtape.domain.limits import Limits
from runtape.domain.outcome import OutcomeKind
from tests.sandbox.conftest import is_made
from tests.sandbox.runs import run

pytestmark = [pytest.mark.needs("sandbox"), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[LocalSandbox, LocalSandbox]]:
    """A sandbox that forks programs and one that execs them."""
    folder = tmp_path_factory.mktemp("both")
    async with LocalSandbox(folder / "a") as forking, LocalSandbox(folder / "b", warm=False) as execing:
        await is_made(forking, "forked")
        yield forking, execing


ADDRESS = re.compile(rb"0x[0-9a-f]+")
CLASS = "class Loud:\n    def __del__(self): print('gone', self.name, flush=True)\n"
SCRIPTS = {
    "nothing": "",
    "exit code": "import sys; sys.exit(7)",
    "exit code beyond a byte": "raise SystemExit(-1)",
    "exit with words": "import sys; print('a', end=''); sys.exit('no')",
    "exit with an object": "raise SystemExit([1])",
    "exit by the builtin": "exit(3)",
    "uncaught error": "def f():\n    return 1 / 0\nf()",
    "error with a cause": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e",
    "syntax error": "print('never')\nif True print(1)",
    "null byte in the source": "print(1)\0",
    "a foreign encoding": "# coding: latin-1\nprint(len('é'))",
    "interrupt": "raise KeyboardInterrupt",
    "interrupt by signal": "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)",
    "killed by a signal": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "hang-up": "import os, signal; os.kill(os.getpid(), signal.SIGHUP)",
    "handler": "import signal; print(signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))",
    "atexit in order": "import atexit\nfor n in range(3): atexit.register(print, n)",
    "error in atexit": "import atexit\natexit.register(lambda: 1 / 0)",
    "hook": "import sys\nsys.excepthook = lambda *e: print('hook', e[0].__name__)\n1 / 0",
    "thread outlives main": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.05), print('late'))).start(); print('early')",
    "daemon thread does not": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(60), print('late')), daemon=True).start()",
    "global with a finaliser": CLASS + "a = Loud(); a.name = 'a'",
    "cycle with a finaliser": CLASS + "a = Loud(); a.name = 'cycle'; a.self = a; del a",
    "finaliser in a module": "import helper",
    "finaliser that needs a module and a function": "import sys\ndef say(x): sys.stdout.write(x)\n"
    "class A:\n    def __del__(self): say('bye' + other)\na = A(); other = '!'",
    "exit code beyond a long": "import sys; sys.exit(1 << 70)",
    "local time": "import time; print(time.tzname, time.localtime(0).tm_hour)",
    "age of the log": "import logging; logging.warning('%s', logging.makeLogRecord({}).relativeCreated < 2000)",
    "its own thread id": "import os, threading; print(threading.main_thread().native_id == os.getpid())",
    "preloading a library": "import os; print(os.environ['LD_LIBRARY_PATH'])",
    "module and its names": "print(__name__, __file__, __doc__, sorted(n for n in globals() if n[:2] != '__'))",
    "pickle of a class in main": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__name__)",
    "arguments and path": "import sys; print(sys.argv, sys.path[0], sys.flags.isolated, sys.stdout.encoding)",
    "environment": "import os; print(sorted(os.environ.items()), os.getenv('A'))",
    "environment of a child": "import subprocess; subprocess.run(['/usr/bin/env'])",
    "stdin": "print(input() + input())",
    "output without a newline": "print('x', end='')",
    "closed stdout": "import sys; sys.stdout.close()",
    "replaced stdout": "import io, sys; sys.stdout = io.StringIO(); print('lost')",
    "fork": "import os\npid = os.fork()\nprint('child' if pid == 0 else os.waitpid(pid, 0)[1])",
    "working folder": "import os; print(os.getcwd(), sorted(os.listdir()))",
    "garbage": "import gc; print(gc.isenabled(), gc.get_threshold() > (0,), gc.get_freeze_count() >= 0)",
    "source of a function": "import inspect\ndef f(): return 1\nprint(inspect.getsource(f), end='')",
    "asyncio": "import asyncio\nasync def f(): await asyncio.sleep(0); print('slept')\nasyncio.run(f())",
}


@pytest.mark.parametrize("name", SCRIPTS)
async def test_forked_program_does_what_an_execd_one_does(both: tuple[LocalSandbox, LocalSandbox], name: str) -> None:
    how = {
        "stdin": b"one\ntwo\n",
        "args": ("x", "☃"),
        "env": {"A": "b", "TZ": "Asia/Tokyo", **({"LD_LIBRARY_PATH": "/box"} if "library" in name else {})},
        "files": {"helper.py": (CLASS + "kept = Loud(); kept.name = 'helper'").encode()},
    }
    forked, execd = [await run(sandbox, SCRIPTS[name], **how) for sandbox in both]
    assert forked.outcome == execd.outcome
    assert forked.stdout == execd.stdout
    if "interrupt" in name:  # the exec'd interpreter prints it by itself, with the frames of its starter
        assert forked.stderr.splitlines()[-1:] == execd.stderr.splitlines()[-1:]
    else:
        assert ADDRESS.sub(b"", forked.stderr) == ADDRESS.sub(b"", execd.stderr)


async def test_every_run_draws_numbers_of_its_own(both: tuple[LocalSandbox, LocalSandbox]) -> None:
    script = "import random, secrets, uuid; print(random.random(), secrets.token_hex(8), uuid.uuid4())"
    drawn = [(await run(both[0], script)).text.split() for _ in range(8)]
    assert [len(set(column)) for column in zip(*drawn, strict=True)] == [8, 8, 8]


async def test_children_of_a_program_draw_numbers_of_their_own(both: tuple[LocalSandbox, LocalSandbox]) -> None:
    script = "import os, random\nfor _ in range(3):\n    if os.fork() == 0: break\nprint(random.random(), flush=True)\n"
    drawn = (await run(both[0], script + "try: os.waitpid(-1, 0)\nexcept OSError: pass\n")).text.split()
    assert len(set(drawn)) == len(drawn)


async def test_pages_that_are_shared_with_the_zygote_are_not_its_own_memory(
    both: tuple[LocalSandbox, LocalSandbox],
) -> None:
    result = await run(both[0], "print(1)")
    assert 0 < result.usage.peak_memory_bytes < 8 << 20


async def test_making_of_a_box_is_no_usage_of_its_program(both: tuple[LocalSandbox, LocalSandbox]) -> None:
    await asyncio.sleep(0.05)  # its box has rehearsed
    usages = [(await run(both[0], "", limits=Limits(cpu_s=1))).usage for _ in range(10)]
    assert min(usage.cpu_user_ns + usage.cpu_system_ns for usage in usages) < 4_000_000


async def test_flood_ends_a_forked_run_at_its_output_limit(both: tuple[LocalSandbox, LocalSandbox]) -> None:
    result = await run(both[0], "while True: print('x' * 1000)", limits=Limits(output_bytes=10_000))
    assert result.outcome.kind is OutcomeKind.OUTPUT_LIMIT
    assert len(result.stdout) == 10_000
