"""The last line about a run: what ended it and what it used, in units for people."""

import signal
from collections.abc import Mapping
from typing import Any

_KINDS = {
    "time_limit": "CPU time limit reached",
    "wall_limit": "time limit reached",
    "memory_limit": "memory limit reached",
    "output_limit": "output limit reached",
    "cancelled": "cancelled",
    "sandbox_error": "the sandbox failed",
}
_EXITED = {"compile": "compiler exited", "resolve": "resolver exited"}
"""Who exited, in the phases before the program's own."""


def summary(result: Mapping[str, Any]) -> str:
    """Return id, outcome, wall and CPU time and peak memory of a result, on one line."""
    usage = result.get("usage") or {}
    cpu_ns = (usage.get("cpu_user_ns") or 0) + (usage.get("cpu_system_ns") or 0)
    parts = [
        f"{result.get('execution_id', 'execution')}: {outcome_text(result.get('outcome') or {})}",
        f"wall {duration(usage.get('wall_ns') or 0)}",
        f"CPU {duration(cpu_ns)}",
        f"peak memory {size(usage.get('peak_memory_bytes') or 0)}",
    ]
    attempt = result.get("attempt")
    if isinstance(attempt, int) and attempt > 1:
        parts.append(f"attempt {attempt}")
    return ", ".join(parts)


def outcome_text(outcome: Mapping[str, Any]) -> str:
    """Return what ended a run, with the service's own message where there is one."""
    kind = str(outcome.get("kind", "unknown"))
    if kind == "exited":
        who = _EXITED.get(str(outcome.get("phase")), "exited")
        return f"{who} {outcome.get('exit_code')}"
    if kind == "signalled":
        number = outcome.get("signal")
        try:
            text = f"killed by {signal.Signals(number).name}" if isinstance(number, int) else "killed"
        except ValueError:
            text = f"killed by signal {number}"
    else:
        text = _KINDS.get(kind, kind)
    message = outcome.get("message")
    return f"{text} ({message})" if message else text


def duration(ns: int) -> str:
    """Return a time of `ns` nanoseconds as ms below one second, else as s."""
    if ns < 999_500_000:
        return f"{ns / 1e6:.0f} ms" if ns >= 9_950_000 else f"{ns / 1e6:.1f} ms"
    return f"{ns / 1e9:.2f} s"


def size(count: int) -> str:
    """Return a number of bytes in binary units."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1023.95 or unit == "GiB":
            break
    return f"{value:.1f} {unit}"  # pyright: ignore[reportPossiblyUnboundVariable]  # the tuple is not empty
