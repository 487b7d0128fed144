"""The report for a person: a line for each case, and below it what to know of those that did not simply hold."""

import textwrap

from runtape.prove.verdict import CaseResult, Report, Verdict

_WORDS = {Verdict.HELD: "held", Verdict.KERNEL: "kernel", Verdict.FAILED: "FAILED"}
_COLOURS = {Verdict.HELD: "32", Verdict.KERNEL: "33", Verdict.FAILED: "31"}
_WIDTH = 110
_INDENT = " " * 15


def row(case: CaseResult, *, coloured: bool) -> str:
    """Return the lines of one case, without a line end behind the last."""
    word = f"{_WORDS[case.verdict]:<7}"
    if coloured:
        word = f"\x1b[{_COLOURS[case.verdict]}m{word}\x1b[0m"
    lines = [f"{word} {case.id:<5}  {case.title} {case.took_s:.1f} s".rstrip()]
    if case.verdict is Verdict.FAILED:
        lines += [_wrapped(f"{flaw.part.replace('_', ' ')}: {flaw.what}") for flaw in case.flaws]
        lines += [_wrapped(f"layer: {case.layer}"), _wrapped(f"fix: {case.because}")]
    elif case.verdict is Verdict.KERNEL:
        lines.append(_wrapped(case.because))
    return "\n".join(lines)


def summary(report: Report) -> str:
    """Return the last line."""
    counts = report.counts
    return (
        f"{counts[Verdict.HELD]} held, {counts[Verdict.KERNEL]} held only as far as the kernel, "
        f"{counts[Verdict.FAILED]} failed, in {report.took_s:.0f} s ({report.host['user']}, "
        f"memory limit by {report.host['memory_limit']}, Linux {report.host['kernel']})"
    )


def _wrapped(text: str) -> str:
    # What a program said is told too, and must not reach the terminal as it is.
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return textwrap.fill(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT + "  ")
