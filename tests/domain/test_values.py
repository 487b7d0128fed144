"""Limits, paths, outcomes and sources."""

from dataclasses import fields, replace
from pathlib import PurePosixPath

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from runtape.domain import events
from runtape.domain.errors import InvalidPath, LimitOutOfRange
from runtape.domain.events import ENDED_BY_STATUS, MESSAGE_TYPES, Message
from runtape.domain.limits import MAXIMUM, MINIMUM, REQUESTABLE, LimitPolicy, Limits
from runtape.domain.outcome import Outcome, OutcomeKind, Status
from runtape.domain.source import NAME_BYTES, PATH_BYTES, Source, SourceFile, checked_path


class TestLimits:
    def test_nothing_asked_for_gives_the_defaults(self) -> None:
        assert LimitPolicy().resolve({}) == Limits()
        assert LimitPolicy().resolve(dict.fromkeys(REQUESTABLE)) == Limits()

    def test_what_is_asked_for_is_laid_over_the_defaults(self) -> None:
        policy = LimitPolicy(default=Limits(memory_mb=100))
        assert policy.resolve({"wall_s": 3, "cpu_s": None}) == Limits(memory_mb=100, wall_s=3)

    @pytest.mark.parametrize("name", REQUESTABLE)
    def test_both_bounds_are_allowed_and_nothing_beyond(self, name: str) -> None:
        policy = LimitPolicy()
        for bounds, step in ((MINIMUM, -1), (MAXIMUM, 1)):
            bound = getattr(bounds, name)
            assert getattr(policy.resolve({name: bound}), name) == bound
            with pytest.raises(LimitOutOfRange) as refusal:
                policy.resolve({name: bound + step})
            assert refusal.value.field == f"limits.{name}"

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 10**400, -(10**400)])
    def test_no_number_gets_past_the_bounds(self, value: float) -> None:
        with pytest.raises(LimitOutOfRange):
            LimitPolicy().resolve({"wall_s": value})

    def test_a_refusal_tells_exact_numbers(self) -> None:
        with pytest.raises(LimitOutOfRange, match=r"output_bytes is 67108865; it must lie between 1 and 67108864"):
            LimitPolicy().resolve({"output_bytes": (64 << 20) + 1})

    def test_an_installation_may_lower_the_maximum(self) -> None:
        policy = LimitPolicy(maximum=Limits(wall_s=20))
        with pytest.raises(LimitOutOfRange):
            policy.resolve({"wall_s": 21})

    @pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
    def test_limits_of_an_earlier_run_are_held_to_the_maximum_of_today(self, name: str) -> None:
        before = Limits()
        value = getattr(before, name)
        LimitPolicy(maximum=before).check_again(before)
        with pytest.raises(LimitOutOfRange, match=rf"{name} is {value}; .*; the maximum was lowered") as refusal:
            LimitPolicy(maximum=replace(before, **{name: value - 1})).check_again(before)
        assert refusal.value.field == f"limits.{name}"

    def test_every_default_lies_within_the_bounds(self) -> None:
        for field in fields(Limits):
            name = field.name
            assert getattr(MINIMUM, name) <= getattr(Limits(), name) <= getattr(MAXIMUM, name)


class TestPaths:
    @pytest.mark.parametrize(
        ("path", "normal"),
        [("a", "a"), ("a/b.txt", "a/b.txt"), ("./a//b/./c", "a/b/c"), ("ä/ö", "ä/ö"), (" ", " "), ("a/.tmp", "a/.tmp")],
    )
    def test_relative_paths_are_normalised(self, path: str, normal: str) -> None:
        assert checked_path(path, "files[0].path") == normal

    @pytest.mark.parametrize(
        "path",
        [
            *(
                "",
                ".",
                "./",
                "a/",
                "/",
                "/etc/passwd",
                "//a",
                "..",
                "../a",
                "a/../b",
                "a/..",
                "a\0b",
                ".tmp",
                ".tmp/a",
                "out",
                "./out",
            ),
            *("./.tmp/a", "\ud800", "a/\udfff/b", "n" * (NAME_BYTES + 1), "a/" * (PATH_BYTES // 2) + "b", "ä" * 128),
        ],
    )
    def test_paths_that_name_no_file_within_the_work_directory_are_refused(self, path: str) -> None:
        with pytest.raises(InvalidPath) as refusal:
            checked_path(path, "files[7].path")
        assert refusal.value.field == "files[7].path"

    @given(st.text(alphabet="a./\0é~\\ \n", max_size=20) | st.text(max_size=40))
    @example("a/./../../b")
    def test_whatever_is_accepted_stays_inside_and_is_its_own_normal_form(self, path: str) -> None:
        try:
            normal = checked_path(path, "path")
        except InvalidPath:
            return
        parts = normal.split("/")
        assert all(part not in ("", ".", "..") and "\0" not in part for part in parts)
        assert not PurePosixPath(normal).is_absolute()
        assert parts[0] != ".tmp"
        assert checked_path(normal, "path") == normal


class TestOutcomes:
    def test_every_kind_leads_to_a_terminal_status_with_an_event_of_its_own(self) -> None:
        for kind in OutcomeKind:
            status = Outcome(kind=kind).status
            assert status.terminal
            assert ENDED_BY_STATUS[status].type == f"execution.{status}"

    def test_only_queued_and_running_are_not_terminal(self) -> None:
        assert {status for status in Status if not status.terminal} == {Status.QUEUED, Status.RUNNING}

    def test_every_message_type_is_known_by_its_name(self) -> None:
        classes = [each for each in vars(events).values() if isinstance(each, type) and issubclass(each, Message)]
        assert {each.type: each for each in classes if hasattr(each, "type")} == MESSAGE_TYPES


def test_a_source_counts_everything_that_its_document_would_carry() -> None:
    source = Source(
        script="12345", stdin=b"123", args=("12", "3"), env=(("A", "123"),), files=(SourceFile("ab", b"1234"),)
    )
    assert source.size_bytes == 5 + 3 + 3 + 4 + 6
