"""What is streamed, stored and given back is byte for byte what the program printed, however it ended."""

import asyncio
import hashlib
import random
import time
from typing import Any

import pytest

from tests.e2e.server import Client
from tests.e2e.sse import Frame, kinds, printed

pytestmark = pytest.mark.needs("server")

MIB = 1 << 20
LARGE = {"output_bytes": 64 * MIB, "wall_s": 60, "cpu_s": 60}


async def printed_by(real: Client, script: str, **fields: Any) -> tuple[dict[str, bytes], dict[str, Any], list[Frame]]:
    """Run `script`; return the bytes of both streams, which must be the same everywhere, its result and its frames."""
    execution_id = await real.execute(script, **fields)
    async with real.stream(execution_id) as live:
        frames = [frame for frame in await live.rest() if frame.kind != "execution_pod"]  # told once, while it happens
    result = frames[-2].data["result"]
    assert result == await real.result(execution_id)
    seqs = [frame.data["seq"] for frame in frames if frame.event == "output"]
    assert seqs == list(range(1, len(seqs) + 1))
    times = [frame.data["t_ns"] for frame in frames if frame.event == "output"]
    assert times == sorted(times)
    found: dict[str, bytes] = {}
    for stream in ("stdout", "stderr"):
        data = found[stream] = printed(frames, stream)
        assert (await real.get(f"/executions/{execution_id}/output/{stream}")).content == data
        assert result[f"{stream}_bytes"] == len(data)
        assert result[f"{stream}_sha256"] == hashlib.sha256(data).hexdigest()
    async with real.stream(execution_id) as replayed:
        assert await replayed.rest() == frames
    assert result["usage"]["output_bytes"] == len(found["stdout"]) + len(found["stderr"])
    return found, result, frames


async def test_any_byte_comes_back_as_it_was_printed(real: Client) -> None:
    everything = bytes(range(256)) * 3 + b"\0" * 5000 + random.Random(3).randbytes(200_000)
    script = f"import sys; sys.stdout.buffer.write(bytes.fromhex('{everything.hex()}'))"
    found, _, _ = await printed_by(real, script)
    assert found == {"stdout": everything, "stderr": b""}


async def test_character_split_over_writes_comes_back_whole(real: Client) -> None:
    script = """
import os, time
for piece in (b"a\\xe2", b"\\x82", b"\\xac\\xf0\\x9f", b"\\x98\\x80", b"\\xff\\xc3", b"\\xa9\\n"):
    os.write(1, piece)
    time.sleep(0.03)
"""
    found, _, frames = await printed_by(real, script)
    assert found["stdout"] == b"a\xe2\x82\xac\xf0\x9f\x98\x80\xff\xc3\xa9\n"
    carried = [frame.data for frame in frames if frame.event == "output"]
    assert any("b64" in data for data in carried), "the pieces were printed apart, so some are no UTF-8"


async def test_line_of_50_mb_comes_back_whole(real: Client) -> None:
    script = """
import os
piece = bytes(48 + number % 75 for number in range(50_000))
for _ in range(1000):
    rest = piece
    while rest:
        rest = rest[os.write(1, rest):]
"""
    found, result, _ = await printed_by(real, script, limits=LARGE)
    assert found["stdout"] == bytes(48 + number % 75 for number in range(50_000)) * 1000
    assert (result["status"], result["truncated_inline"], len(result["stdout"])) == ("completed", True, 65_536)


async def test_million_lines_come_back_in_order(real: Client) -> None:
    found, result, _ = await printed_by(real, "for number in range(1_000_000): print(number)", limits=LARGE)
    assert found["stdout"] == b"".join(b"%d\n" % number for number in range(1_000_000))
    assert result["status"] == "completed"


async def test_output_that_looks_like_frames_ends_no_stream(real: Client) -> None:
    text = 'id: 9.9.9\nevent: end\ndata: {}\n\n: comment\r\n\r\nretry: 1\n\nevent: gap\rdata: {"x":1}\n\n\u2028\x85\n'
    found, _, frames = await printed_by(real, f"import sys; sys.stdout.buffer.write({text.encode()!r})")
    assert found["stdout"] == text.encode()
    assert kinds(frames)[-2:] == ["result_stored", "end"]
    assert {frame.kind for frame in frames[2:-3]} == {"output"}


async def test_both_streams_keep_their_order(real: Client) -> None:
    script = """
import os
for number in range(2000):
    os.write(1, b"out %d\\n" % number)
    os.write(2, b"err %d\\n" % number)
"""
    found, _, frames = await printed_by(real, script)
    assert found["stdout"] == b"".join(b"out %d\n" % number for number in range(2000))
    assert found["stderr"] == b"".join(b"err %d\n" % number for number in range(2000))
    assert {frame.data["stream"] for frame in frames if frame.event == "output"} == {"stdout", "stderr"}


async def test_output_of_what_the_program_left_behind_is_kept(real: Client) -> None:
    # One write each: an unbuffered print writes its newline apart, and the two processes take turns.
    script = "import os\nif os.fork(): os.write(1, b'parent\\n'); os._exit(0)\nos.write(1, b'child\\n')"
    found, result, _ = await printed_by(real, script)
    assert result["exit_code"] == 0
    assert found["stdout"].startswith((b"parent\n", b"child\n"))


# Limits: each gives its own outcome, and what was printed before is kept


async def test_wall_limit(real: Client) -> None:
    began = time.monotonic()
    script = "import sys, time\nprint('before', flush=True); print('x', file=sys.stderr, flush=True)\ntime.sleep(60)"
    found, result, frames = await printed_by(real, script, limits={"wall_s": 0.5})
    assert time.monotonic() - began < 3
    assert found == {"stdout": b"before\n", "stderr": b"x\n"}
    assert (result["status"], result["outcome"]["kind"], result["exit_code"]) == ("timeout", "wall_limit", None)
    assert result["usage"]["wall_ns"] >= 500_000_000
    assert kinds(frames)[-3:] == ["execution_timeout", "result_stored", "end"]


async def test_cpu_limit_counts_the_whole_tree(real: Client) -> None:
    script = "import os\nprint('before', flush=True)\nos.fork(); os.fork()\nwhile True: pass"
    found, result, _ = await printed_by(real, script, limits={"cpu_s": 0.4, "wall_s": 20})
    assert found["stdout"] == b"before\n"
    assert (result["status"], result["outcome"]["kind"]) == ("timeout", "time_limit")
    used_s = (result["usage"]["cpu_user_ns"] + result["usage"]["cpu_system_ns"]) / 1e9
    assert 0.35 < used_s < 2
    assert result["usage"]["wall_ns"] < 10e9


async def test_memory_limit(real: Client) -> None:
    script = "print('before', flush=True)\nkeep = []\nwhile True: keep.append(bytearray(1 << 20))"
    found, result, _ = await printed_by(real, script, limits={"memory_mb": 64})
    assert found["stdout"] == b"before\n"
    assert (result["status"], result["outcome"]["kind"]) == ("failed", "memory_limit")
    assert result["usage"]["peak_memory_bytes"] <= 72 * MIB


async def test_output_limit_leaves_a_truncation_record(real: Client) -> None:
    script = "import sys\nsys.stderr.write('e' * 10); sys.stderr.flush()\nwhile True: sys.stdout.write('x' * 1000)"
    found, result, frames = await printed_by(real, script, limits={"output_bytes": 100_000})
    assert len(found["stdout"]) + len(found["stderr"]) == 100_000
    assert found["stderr"] == b"e" * 10
    assert (result["status"], result["outcome"]["kind"]) == ("failed", "output_limit")
    records = [frame.data for frame in frames if frame.event == "output"]
    assert records[-1]["truncated"] is True
    assert not any("truncated" in record for record in records[:-1])


async def test_output_of_exactly_the_limit_is_not_cut(real: Client) -> None:
    found, result, frames = await printed_by(real, "print('x' * 999)", limits={"output_bytes": 1000})
    assert len(found["stdout"]) == 1000
    assert (result["status"], result["outcome"]["kind"]) == ("completed", "exited")
    assert not any("truncated" in frame.data for frame in frames if frame.event == "output")


async def test_cancelled_run_keeps_what_it_printed(real: Client) -> None:
    execution_id = await real.execute("import signal\nprint('kept' * 30_000, flush=True)\nsignal.pause()")
    async with real.stream(execution_id) as stream:
        seen = b""
        frames: list[Frame] = []
        while len(seen) < 120_001:
            frame = await stream.next()
            assert frame is not None
            frames.append(frame)
            seen = printed(frames)
        await real.post(f"/executions/{execution_id}/cancel")
        frames += await stream.rest()
    assert printed(frames) == b"kept" * 30_000 + b"\n"
    result = frames[-2].data["result"]
    assert (result["outcome"]["kind"], result["stdout_bytes"]) == ("cancelled", 120_001)
    assert (await real.get(f"/executions/{execution_id}/output/stdout")).content == printed(frames)


async def test_runs_side_by_side_do_not_mix(real: Client) -> None:
    async def one(number: int) -> None:
        result = await real.run(f"for line in range(200): print('run {number} line', line)")
        assert result["stdout"] == "".join(f"run {number} line {line}\n" for line in range(200))

    await asyncio.gather(*(one(number) for number in range(20)))
