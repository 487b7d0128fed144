"""The wire of server-sent events, cut anywhere."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtape.cli.sse import Frame, FrameParser


def parse(*pieces: bytes) -> list[Frame]:
    parser = FrameParser()
    return [frame for piece in pieces for frame in parser.feed(piece)]


def test_unnamed_frame_is_a_message() -> None:
    assert parse(b"id: 1.0.0\ndata: {}\n\n") == [Frame("message", "{}", "1.0.0")]


def test_named_frame_without_id_has_none() -> None:
    assert parse(b"id: 1\ndata: a\n\nevent: end\ndata: b\n\n") == [Frame("message", "a", "1"), Frame("end", "b", None)]


def test_comments_make_no_frame() -> None:
    assert parse(b": heartbeat\n\n: heartbeat\n\n") == []


def test_frame_that_was_broken_off_does_not_exist() -> None:
    assert parse(b"id: 7\ndata: half\n") == []


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_each_line_ending_of_the_standard(end: bytes) -> None:
    lines = [b"event: output", b"data: one", b"data: two", b"", b"data: x", b"", b"data: more"]
    assert parse(end.join(lines) + end) == [Frame("output", "one\ntwo", None), Frame("message", "x", None)]


def test_carriage_return_at_a_cut_is_not_taken_for_an_empty_line() -> None:
    assert parse(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == [Frame("message", "a\nb", None)]


def test_only_one_leading_space_belongs_to_the_wire() -> None:
    assert parse(b"data:  a\n\ndata:b\n\n") == [Frame("message", " a", None), Frame("message", "b", None)]


def test_byte_order_mark_is_dropped() -> None:
    assert parse(b"\xef\xbb\xbfdata: a\n\n") == [Frame("message", "a", None)]


def test_retry_is_kept() -> None:
    parser = FrameParser()
    assert list(parser.feed(b"retry: 1500\nretry: soon\n\n")) == []
    assert parser.retry_ms == 1500


STREAM = (
    b'id: 1.0.0\ndata: {"a": 1}\n\n: heartbeat\n\nevent: output\r\nid: 2.1.1\r\ndata: {"text": "\xc3\xa9"}\r\n\r\n'
    b"event: end\rdata\r\r"
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_cuts_change_nothing(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(edges)]
    # A CR at the very end may be half of a CRLF, so the last frame shows once something follows.
    assert parse(*pieces, b"\n") == [
        Frame("message", '{"a": 1}', "1.0.0"),
        Frame("output", '{"text": "é"}', "2.1.1"),
        Frame("end", "", None),
    ]
