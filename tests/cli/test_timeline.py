"""A run's timeline as two rows of bars."""

from runtape.cli.timeline import chart

POINTS = [
    {"t_ns": 0, "memory_bytes": 1 << 20, "cpu_ns": 0},
    {"t_ns": 500_000_000, "memory_bytes": 8 << 20, "cpu_ns": 500_000_000},
    {"t_ns": 1_000_000_000, "memory_bytes": 4 << 20, "cpu_ns": 500_000_000},
]


def test_rows_share_their_columns_and_tell_what_they_reach() -> None:
    assert chart(POINTS).splitlines() == [
        "memory |██▄| up to 8.0 MiB",
        "CPU    |█▄ | up to 1.0 processors, over 1.00 s",
    ]


def test_long_run_has_as_many_columns_as_fit_a_line() -> None:
    points = [{"t_ns": n * 10**8, "memory_bytes": n, "cpu_ns": n * 2 * 10**8} for n in range(1, 200)]
    memory, cpu = chart(points).splitlines()
    assert memory.index("|", 8) == cpu.index("|", 8) == 68
    assert memory[8:68] == "".join(sorted(memory[8:68]))
    assert cpu[8:68] == "█" * 60
    assert "up to 2.0 processors, over 19.90 s" in cpu


def test_run_that_never_began_has_no_chart() -> None:
    assert chart([]) == "timeline: the program was not started"
