"""What all commands share, and those that call inward."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runtape.cli.main import main
from runtape.cli.submission import language
from runtape.cli.summary import duration, outcome_text, size
from tests.cli.commands import COMMAND, environment, runtape


def test_version() -> None:
    assert runtape("--version").stdout == b"0.1.0\n"


def test_help_names_every_command() -> None:
    shown = runtape("--help").stdout.decode()
    for command in ("run", "tape", "up", "doctor", "config", "bench", "prove", "test", "--install-completion"):
        assert f" {command} " in shown


def test_help_of_run_tells_the_exit_codes() -> None:
    assert b"137 memory limit" in runtape("run", "--help").stdout


@pytest.mark.parametrize("arguments", [["bogus"], ["tape"], ["tape", "id", "--speed", "fast"], ["config", "shwo"]])
def test_wrong_usage_is_one_line_and_exits_with_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_tests_are_left_to_the_launcher(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "-k", "x"]) == 1
    assert "./runtape test" in capfd.readouterr().err


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


def test_config_show_names_sources_and_masks_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNTAPE_ADMIN_PASSWORD", "hunter2")
    monkeypatch.setenv("RUNTAPE_DATA", str(tmp_path))
    (tmp_path / "runtape.toml").write_text('log_level = "debug"\n')
    assert main(["config", "show", "--json"]) == 0
    shown = capfd.readouterr().out
    rows = {row["name"]: row for row in json.loads(shown)}
    assert rows["log_level"]["value"] == "debug"
    assert rows["log_level"]["source"] == "runtape.toml"
    assert rows["admin_password"]["source"] == "RUNTAPE_ADMIN_PASSWORD"
    assert rows["limits.wall_s"]["source"] == "default"
    assert main(["config", "show"]) == 0
    plain = capfd.readouterr().out
    assert any(line.split()[:2] == ["log_level", "debug"] for line in plain.splitlines())
    assert "hunter2" not in shown + plain


@pytest.mark.parametrize("command", ["config show", "up --port 0", "prove"])
def test_a_wrong_setting_is_named_in_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNTAPE_ADMISSION__RUNNING", "many")
    assert main([*command.split(), "--data", str(tmp_path)]) == 1
    told = capfd.readouterr().err
    assert told.startswith("error: a setting is not valid: admission.running: ")
    assert told.count("\n") == 1
    monkeypatch.delenv("RUNTAPE_ADMISSION__RUNNING")
    (tmp_path / "runtape.toml").write_text("log_level = loud")
    assert main([*command.split(), "--data", str(tmp_path)]) == 1
    assert capfd.readouterr().err.startswith("error: runtape.toml is no TOML: Invalid value (at line 1, column 13)")


@pytest.mark.parametrize(
    ("file", "script", "lang"),
    [
        ("a.py", "", "python"),
        ("A.PY", "", "python"),
        ("a.sh", "#!/usr/bin/env python3", "bash"),
        ("a.bash", "", "bash"),
        ("a.mjs", "", "node"),
        ("a.R", "", "r"),
        ("a.cc", "", "c++"),
        ("a", "#!/usr/bin/python3.11 -I\n", "python"),
        ("a", "#!/usr/bin/env -S node --no-warnings\n", "node"),
        ("-", "#! /bin/sh\n", "bash"),
        ("-", "#!/usr/bin/env Rscript\n", "r"),
        ("-", "#!/usr/bin/lua5.4\n", "lua"),
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
