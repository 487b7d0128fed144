"""What all commands share, and those that call inward."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runtape.cli.submission import language
from runtape.cli.summary import duration, outcome_text, size
from tests.cli.commands import COMMAND, environment, runtape


def test_version() -> None:
    assert runtape("--version").stdout == b"0.1.0\n"


def test_help_names_every_command() -> None:
    shown = runtape("--help").stdout.decode()
    for command in ("run", "tape", "up", "doctor", "config", "bench", "test", "--install-completion"):
        assert f" {command} " in shown


def test_help_of_run_tells_the_exit_codes() -> None:
    assert b"137 memory limit" in runtape("run", "--help").stdout


@pytest.mark.parametrize("arguments", [["bogus"], ["tape"], ["tape", "id", "--speed", "fast"], ["config", "shwo"]])
def test_wrong_usage_is_one_line_and_exits_with_2(arguments: list[str]) -> None:
    done = runtape(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1


def test_tests_are_left_to_the_launcher() -> None:
    done = runtape("test", "-k", "x")
    assert done.returncode == 1
    assert b"./runtape test" in done.stderr


def test_run_imports_nothing_of_the_server() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "run", "/nowhere.py"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "runtape.cli.stream" in imported
    heavy = {"asyncio", "fastapi", "httpx2", "msgspec", "pydantic", "rich", "sqlite3", "structlog", "uvicorn"}
    assert not heavy & imported
    own = {name for name in imported if name.startswith("runtape.")}
    assert all(name.startswith("runtape.cli") for name in own)


def test_config_show_names_sources_and_masks_secrets(tmp_path: Path) -> None:
    env = {"RUNTAPE_ADMIN_PASSWORD": "hunter2", "RUNTAPE_DATA": str(tmp_path)}
    (tmp_path / "runtape.toml").write_text('log_level = "debug"\n')
    done = runtape("config", "show", "--json", env=env)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["log_level"]["value"] == "debug"
    assert rows["log_level"]["source"] == "runtape.toml"
    assert rows["admin_password"]["source"] == "RUNTAPE_ADMIN_PASSWORD"
    assert rows["limits.wall_s"]["source"] == "default"
    assert b"hunter2" not in done.stdout
    plain = runtape("config", "show", env=env)
    assert b"hunter2" not in plain.stdout
    assert any(line.split()[:2] == ["log_level", "debug"] for line in plain.stdout.decode().splitlines())


def test_config_show_names_the_wrong_setting(tmp_path: Path) -> None:
    done = runtape("config", "show", "--data", tmp_path, env={"RUNTAPE_ADMISSION__RUNNING": "many"})
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: a setting is not valid: admission.running: ")


@pytest.mark.parametrize(
    ("file", "script", "lang"),
    [
        ("a.py", "", "python"),
        ("A.PY", "", "python"),
        ("a.sh", "#!/usr/bin/env python3", "bash"),
        ("a.bash", "", "bash"),
        ("a.mjs", "", "node"),
        ("a", "#!/usr/bin/python3.11 -I\n", "python"),
        ("a", "#!/usr/bin/env -S node --no-warnings\n", "node"),
        ("-", "#! /bin/sh\n", "bash"),
        ("-", "#!/usr/bin/env PYTHONUTF8=1 python3\n", "python"),
    ],
)
def test_language(file: str, script: str, lang: str) -> None:
    assert language(file, script) == lang


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        ({"kind": "exited", "exit_code": 1, "phase": "compile"}, "compiler exited 1"),
        ({"kind": "signalled", "signal": 11}, "killed by SIGSEGV"),
        ({"kind": "signalled", "signal": 40}, "killed by signal 40"),
        ({"kind": "wall_limit"}, "time limit reached"),
        ({"kind": "sandbox_error", "message": "no slot"}, "the sandbox failed (no slot)"),
    ],
)
def test_outcomes_in_words(outcome: dict[str, object], text: str) -> None:
    assert outcome_text(outcome) == text


def test_units() -> None:
    assert [duration(ns) for ns in (0, 1_234_000, 213_400_000, 999_600_000, 75_300_000_000)] == [
        "0.0 ms",
        "1.2 ms",
        "213 ms",
        "1.00 s",
        "75.30 s",
    ]
    assert [size(count) for count in (0, 1023, 1024, 9_856_614, 1 << 30, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "9.4 MiB",
        "1.0 GiB",
        "5120.0 GiB",
    ]
