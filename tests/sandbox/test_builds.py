"""Builds are kept whole or not at all, and no more of them than was agreed."""

import os
from pathlib import Path

from runtape.adapters.sandbox.builds import Build, Builds


def names_in(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def test_longest_unused_builds_go_first(tmp_path: Path) -> None:
    builds = Builds(tmp_path, 4 * 12_288)
    for age, name in enumerate("abcd"):
        builds.store(name, Build(bytes(10_000), b""))
        os.utime(tmp_path / name, (age, age))
    assert builds.load("a") == Build(bytes(10_000), b"")
    builds.store("e", Build(bytes(10_000), b"text"))
    assert names_in(tmp_path) == {"a", "c", "d", "e"}
    assert builds.load("b") is None
    assert builds.load("e") == Build(bytes(10_000), b"text")


def test_unfinished_builds_of_a_crash_are_removed(tmp_path: Path) -> None:
    builds = Builds(tmp_path, 1 << 20)
    builds.store("a", Build(b"program", b""))
    (tmp_path / "0123.part").write_bytes(b"half")
    Builds(tmp_path, 1 << 20).open()
    assert names_in(tmp_path) == {"a"}
