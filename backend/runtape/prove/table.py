"""The report for a person: a line for each case, and below it what to know of those that did not simply hold."""

import textwrap

from runtape.prove.target import Target
from runtape.prove.verdict import CaseResult, Report, Verdict

_WORDS = {
    Verdict.HELD: "held",
    Verdict.KERNEL: "kernel",
    Verdict.CLUSTER: "cluster",
    Verdict.FAILED: "FAILED",
    Verdict.NOT_HERE: "n/a",
}
_COLOURS = {
    Verdict.HELD: "32",
    Verdict.KERNEL: "33",
    Verdict.CLUSTER: "33",
    Verdict.FAILED: "31",
    Verdict.NOT_HERE: "2",
}
_HOST = {
    Target.SANDBOX: "{user}, memory limit by {memory_limit}, Linux {kernel}",
    Target.KUBERNETES: "Kubernetes {kubernetes}, {container_runtime}, Linux {kernel}, RuntimeClass {runtime_class}, "
    "user namespaces: {user_namespaces}, NetworkPolicy: {network_policy}",
}
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
    elif case.because:
        lines.append(_wrapped(case.because))
    return "\n".join(lines)


def summary(report: Report) -> str:
    """Return the last line."""
    counts = report.counts
    always = (Verdict.HELD, Verdict.KERNEL, Verdict.FAILED)
    told = [f"{count} {verdict}" for verdict, count in counts.items() if count or verdict in always]
    if counts[Verdict.NOT_HERE] > 1:
        told[-1] = f"{counts[Verdict.NOT_HERE]} do not apply"
    return f"{', '.join(told)}, in {report.took_s:.0f} s ({_HOST[report.target].format_map(report.host)})"


def _wrapped(text: str) -> str:
    # What a program said is told too, and must not reach the terminal as it is.
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return textwrap.fill(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT + "  ")
