"""What a request to execute carries arrives at the program, and what it answers."""

import base64
import json

import pytest

from tests.e2e.server import Client

pytestmark = pytest.mark.needs("server")

TELL = """
import json, os, pathlib, sys
json.dump({
    "args": sys.argv[1:],
    "env": {name: os.environ.get(name) for name in ("GREETING", "EMPTY")},
    "stdin": sys.stdin.buffer.read().hex(),
    "files": {str(path): path.read_bytes().hex() for path in pathlib.Path(".").rglob("*") if path.is_file()},
    "version": "%d.%d" % sys.version_info[:2],
    "cwd": os.getcwd(),
}, sys.stdout)
"""


async def test_program_gets_all_that_the_request_carries(real: Client) -> None:
    limits = (await real.get("/k8s-limits")).json()
    version = limits["supported_runtimes"]["python"]["versions"][-1]
    everything = bytes(range(256))
    result = await real.run(
        TELL,
        lang_version=version,
        stdin_b64=base64.b64encode(everything).decode(),
        args=["--flag", "two words", "", "ünï", "$(id)"],
        env={"GREETING": "hällo=1", "EMPTY": ""},
        files=[
            {"path": "data/deep/in.txt", "content": "naïve\n"},
            {"path": "raw.bin", "content_b64": base64.b64encode(everything).decode()},
        ],
        limits={"wall_s": 20, "cpu_s": 5, "memory_mb": 128, "output_bytes": 100_000, "processes": 8},
        priority="high",
        on_interrupt="fail",
    )
    assert result["exit_code"] == 0, result
    told = json.loads(result["stdout"])
    assert told["args"] == ["--flag", "two words", "", "ünï", "$(id)"]
    assert told["env"] == {"GREETING": "hällo=1", "EMPTY": ""}
    assert bytes.fromhex(told["stdin"]) == everything
    assert bytes.fromhex(told["files"]["data/deep/in.txt"]) == "naïve\n".encode()
    assert bytes.fromhex(told["files"]["raw.bin"]) == everything
    assert told["version"] == version
    execution = (await real.get(f"/executions/{result['execution_id']}")).json()
    asked = {"wall_s": 20, "cpu_s": 5, "memory_mb": 128, "output_bytes": 100_000, "processes": 8}
    assert asked.items() <= execution["limits"].items()
    assert (execution["priority"], execution["on_interrupt"], execution["lang_version"]) == ("high", "fail", version)


async def test_program_gets_text_on_standard_input(real: Client) -> None:
    result = await real.run("import sys; sys.stdout.write(sys.stdin.read().upper())", stdin="straße\n")
    assert result["stdout"] == "STRASSE\n"


async def test_newest_version_is_the_default(real: Client) -> None:
    limits = (await real.get("/k8s-limits")).json()
    result = await real.run("print(1)")
    assert result["lang_version"] == limits["supported_runtimes"]["python"]["versions"][0]


async def test_every_language_runs_its_example(real: Client) -> None:
    scripts = (await real.get("/example-scripts")).json()["scripts"]
    assert "python" in scripts
    for lang, script in scripts.items():
        result = await real.run(script, lang)
        assert (result["status"], result["exit_code"]) == ("completed", 0), (lang, result)
        assert result["stdout"], lang


async def test_exit_code_belongs_to_the_program(real: Client) -> None:
    result = await real.run("import sys; print('bye', file=sys.stderr); sys.exit(7)")
    assert (result["status"], result["outcome"]["kind"], result["exit_code"]) == ("completed", "exited", 7)
    assert (result["stdout"], result["stderr"]) == ("", "bye\n")


async def test_signal_is_a_failure_with_its_number(real: Client) -> None:
    result = await real.run("import os; os.kill(os.getpid(), 11)")
    assert (result["status"], result["exit_code"]) == ("failed", None)
    assert (result["outcome"]["kind"], result["outcome"]["signal"]) == ("signalled", 11)


async def test_usage_is_that_of_the_program(real: Client) -> None:
    script = "import time\nx = bytearray(50 << 20)\nt = time.process_time()\nwhile time.process_time() - t < 0.2: pass"
    usage = (await real.run(script))["usage"]
    assert usage["cpu_user_ns"] + usage["cpu_system_ns"] >= 200_000_000
    assert usage["wall_ns"] >= 200_000_000
    assert usage["peak_memory_bytes"] >= 50 << 20
    assert usage["output_bytes"] == 0


async def test_timeline_is_told_when_asked_for_and_stays_with_the_result(real: Client) -> None:
    result = await real.run("import time\nwhile time.process_time() < 0.3:\n    pass", timeline=True)
    points, usage = result["timeline"], result["usage"]
    assert len(points) >= 2
    last = {"t_ns": usage["wall_ns"], "cpu_ns": usage["cpu_user_ns"] + usage["cpu_system_ns"]}
    assert last.items() <= points[-1].items()
    assert points[0]["memory_bytes"] > 0
    stored = (await real.get(f"/executions/{result['execution_id']}/result")).json()
    assert stored["timeline"] == points
    assert (await real.run("print(1)"))["timeline"] is None


async def test_acceptance_is_answered_at_once(client: Client) -> None:
    answer = await client.post("/execute", json={"script": "wait forever-accepted", "lang": "python"})
    assert answer.status_code == 200
    assert answer.json() == {"execution_id": answer.headers["x-execution-id"], "status": "queued"}
    assert (await client.post(f"/executions/{answer.json()['execution_id']}/cancel")).status_code == 200


async def test_script_of_exactly_the_limit_is_accepted(client: Client) -> None:
    script = "#" * ((1 << 20) - 1) + "\n"
    result = await client.run(script)
    assert result["status"] == "completed"
