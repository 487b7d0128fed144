"""Python behaves as `python script.py` does, and others as one expects beyond what `test_languages.py` asks of all."""

import pytest

from runtape.adapters.sandbox import LocalSandbox
from runtape.domain.limits import Limits
from tests.sandbox.runs import run

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.needs("sandbox")]


@pytest.mark.needs("node")
async def test_node_runs_within_the_usual_memory_limit(sandbox: LocalSandbox) -> None:
    script = "const a = []; for (let i = 0; i < 1e6; i++) a.push({i}); console.log(a.length)"
    assert (await run(sandbox, script, lang="node", limits=Limits(memory_mb=256))).text == "1000000"


@pytest.mark.parametrize("leave", ["exit", "quit", "import sys; sys.exit"])
async def test_python_leaves_with_a_status(sandbox: LocalSandbox, leave: str) -> None:
    assert (await run(sandbox, f"{leave}(4)")).outcome.exit_code == 4


async def test_python_imports_uploaded_files(sandbox: LocalSandbox) -> None:
    files = {"helper.py": b"value = 42", "pack/__init__.py": b"", "pack/inner.py": b"value = 43"}
    script = "import helper, pack.inner; print(helper.value, pack.inner.value, __file__, __name__)"
    assert (await run(sandbox, script, files=files)).text == "42 43 /box/main.py __main__"


async def test_python_shows_the_script_alone_in_a_traceback(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, "def f():\n    return 1 / 0\nf()")
    lines = result.stderr.decode().splitlines()
    assert result.outcome.exit_code == 1
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == '  File "/box/main.py", line 3, in <module>'
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert b"/runtape" not in result.stderr


async def test_python_shows_a_syntax_error_with_its_line(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, "x = 1\nif x\n")
    assert result.outcome.exit_code == 1
    assert result.stderr.startswith(b'  File "/box/main.py", line 2\n')
    assert b"/runtape" not in result.stderr


async def test_python_prints_as_it_goes(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, "import time\nprint('a', end='')\ntime.sleep(0.3)\nprint('b')")
    assert result.records[0].data == b"a"
    assert result.records[1].t_ns - result.records[0].t_ns > 0.2e9


async def test_python_hides_nothing_from_the_script(sandbox: LocalSandbox) -> None:
    names = "print(sorted(name for name in globals() if not name.startswith('__')))"
    assert (await run(sandbox, names)).text == "[]"


async def test_python_can_start_processes_and_threads(sandbox: LocalSandbox) -> None:
    script = """
import multiprocessing, subprocess, sys, threading

def double(n): return 2 * n

if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool: print(pool.map(double, [1, 2]))
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool: print(pool.map(double, [3]))
    print(subprocess.run([sys.executable, "-c", "print(5)"], capture_output=True, text=True).stdout.strip())
    thread = threading.Thread(target=print, args=("thread",)); thread.start(); thread.join()
"""
    assert (await run(sandbox, script)).text.split("\n") == ["[2, 4]", "[6]", "5", "thread"]


async def test_python_reads_lines_of_its_input(sandbox: LocalSandbox) -> None:
    assert (await run(sandbox, "print(input() + input())", stdin=b"a\nb\n")).text == "ab"


async def test_python_source_may_hold_any_text(sandbox: LocalSandbox) -> None:
    assert (await run(sandbox, "print('☃', len('𝄞'))")).text == "☃ 1"
    assert (await run(sandbox, "print('\ud800')")).outcome.exit_code == 1


async def test_bash_has_its_usual_devices(sandbox: LocalSandbox) -> None:
    script = (
        "cat <(echo one) /dev/null; head -c3 /dev/zero | wc -c;test -c /dev/urandom && echo two; mktemp | cut -c1-5"
    )
    assert (await run(sandbox, script, lang="bash")).text == "one\n3\ntwo\n/tmp/"
