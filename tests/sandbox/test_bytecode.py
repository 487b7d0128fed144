"""What a compiling box prints is bytecode of the modules that we named, and goes nowhere else; words show no secret."""

import os
from pathlib import Path

import pytest

from runtape.adapters.sandbox.bytecode import BadFrame, BytecodeWriter
from runtape.adapters.sandbox.layers import BadLayer, survey
from runtape.adapters.sandbox.resolver import PackageOptions, Resolver

MODULES = ("a.py", "pack/b.py")


def frame(place: int, content: bytes, length: int | None = None) -> bytes:
    length = len(content) if length is None else length
    return place.to_bytes(4, "little") + length.to_bytes(4, "little") + content


@pytest.fixture
def writer(tmp_path: Path) -> BytecodeWriter:
    (tmp_path / "pack").mkdir()
    return BytecodeWriter(tmp_path, MODULES, "3.13")


def test_bytecode_goes_beside_its_module_however_it_is_cut(writer: BytecodeWriter, tmp_path: Path) -> None:
    printed = frame(1, b"second") + frame(0, b"first")
    for at in range(len(printed)):
        writer.feed(printed[at : at + 1])
    assert (tmp_path / "__pycache__" / "a.cpython-313.pyc").read_bytes() == b"first"
    assert (tmp_path / "pack" / "__pycache__" / "b.cpython-313.pyc").read_bytes() == b"second"
    assert writer.size_bytes == 2 * 4096


@pytest.mark.parametrize(
    "printed",
    [frame(2, b"x"), frame(2**32 - 1, b""), frame(0, b"x") + frame(0, b"x"), frame(0, b"", 2**31)],
    ids=["unknown", "last", "twice", "endless"],
)
def test_what_is_no_bytecode_of_a_module_is_refused(writer: BytecodeWriter, printed: bytes) -> None:
    with pytest.raises(BadFrame):
        writer.feed(printed)


def test_file_that_a_wheel_brought_is_replaced_and_not_written_through(writer: BytecodeWriter, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    cache = tmp_path / "__pycache__"
    cache.mkdir()
    os.link(outside, cache / "a.cpython-313.pyc")
    (tmp_path / "pack" / "__pycache__").mkdir()
    (tmp_path / "pack" / "__pycache__" / "b.cpython-313.pyc").symlink_to(outside)
    writer.feed(frame(0, b"new") + frame(1, b"new"))
    assert outside.read_bytes() == b"untouched"
    assert (cache / "a.cpython-313.pyc").read_bytes() == b"new"


def test_tests_of_packages_are_not_worth_compiling(tmp_path: Path) -> None:
    for path in ("a.py", "tests/b.py", "pack/c.py", "pack/test/d.py", "pack/e.txt", "testing.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    assert survey(tmp_path, 1 << 20).modules == ("a.py", "pack/c.py", "testing.py")


def test_only_files_and_folders_make_a_layer(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(BadLayer, match="link"):
        survey(tmp_path, 1 << 20)
    (tmp_path / "link").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadLayer, match="pipe"):
        survey(tmp_path, 1 << 20)


def test_modes_of_a_layer_let_every_user_read_it_and_bear_no_privilege(tmp_path: Path) -> None:
    for name, mode in (("closed", 0o600), ("run", 0o4700)):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(mode)
    survey(tmp_path, 1 << 20)
    assert [oct((tmp_path / name).stat().st_mode & 0o7777) for name in ("closed", "run")] == ["0o644", "0o755"]


@pytest.mark.parametrize(
    ("index", "variables"),
    [
        ("https://somebody:p%40ss-w0rd@host/simple", {}),
        ("https://p%40ss-w0rd@host/simple", {}),
        (None, {"UV_INDEX": "mine=https://somebody:p%40ss-w0rd@host/simple https://other/simple"}),
        (None, {"UV_INDEX_MINE_PASSWORD": "p@ss-w0rd"}),
    ],
)
def test_credentials_of_an_index_are_masked(
    index: str | None, variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    resolver = Resolver(PackageOptions(index_url=index), tmp_path / "packages" / "wheels")
    said = f"tried https://x:p%40ss-w0rd@host/ with p@ss-w0rd, see {tmp_path}/packages/wheels/x"
    words = resolver.masked(said.encode()).decode()
    assert "p@ss" not in words
    assert "p%40ss" not in words
    assert words.startswith("tried https://****@host/ with ****, see packages/wheels")
    assert b"ss-w0rd" not in resolver.identity()
