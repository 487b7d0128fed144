"""What the target of `runtape prove` changes without one: its cases, who runs beside whom, and what is refused."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runtape.cli.main import main as command
from runtape.prove import main
from runtape.prove.case import Case, Inside, Layer
from runtape.prove.main import choose
from runtape.prove.table import row, summary
from runtape.prove.target import Target
from runtape.prove.verdict import CaseResult, Report, Verdict

HELD = CaseResult(
    id="A01",
    title="fork bomb",
    family="resource",
    tries="forks",
    holds="fails",
    layer="process limit",
    verdict=Verdict.HELD,
    flaws=(),
    because="",
    outcome="exited",
    took_s=1.0,
)
CLUSTER = {
    "kubernetes": "v1.34.4",
    "container_runtime": "containerd://2.1",
    "kernel": "6.1",
    "runtime_class": "gvisor",
    "user_namespaces": "yes",
    "network_policy": "enforced",
}


def test_only_pods_have_their_family() -> None:
    local = {check.id for _, check in choose(Target.SANDBOX, ())}
    pods = {check.id for _, check in choose(Target.KUBERNETES, ())}
    assert local < pods
    assert {check.id for family, check in choose(Target.KUBERNETES, ("pod",))} == pods - local


def test_a_case_is_as_its_target_has_it() -> None:
    (local,) = [check for _, check in choose(Target.SANDBOX, ("A46",))]
    (pods,) = [check for _, check in choose(Target.KUBERNETES, ("A46",))]
    assert (local.layer, pods.layer) == (Layer.NETWORK, Layer.POLICY)


@pytest.mark.parametrize("check", [check for _, check in choose(Target.SANDBOX, ())], ids=lambda check: check.id)
def test_what_differs_in_pods_does_differ(check: Case) -> None:
    assert all(value != getattr(check, name) for name, value in check.in_pods.items())


def test_every_layer_says_what_to_do_in_pods() -> None:
    assert all(layer.fix_in(Target.KUBERNETES) and "doctor" not in layer.fix_in(Target.KUBERNETES) for layer in Layer)
    assert Layer.MEMORY.fix_in(Target.SANDBOX) == Layer.MEMORY.fix != Layer.MEMORY.fix_in(Target.KUBERNETES)


class Judging:
    """Stands in for the battery: counts the programs that are there at once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.order: list[str] = []
        self.programs = self.most = 0

    async def judge(self, case: Case, family: str) -> CaseResult:
        self.order.append(case.id)
        self.programs += main._programs(case)
        self.most = max(self.most, self.programs)
        for _ in range(len(self.order) % 5):
            await asyncio.sleep(0)
        self.programs -= main._programs(case)
        if case.id == "A99":
            raise OSError("it cannot be judged")
        return replace(HELD, id=case.id)

    def known_limit(self, check: Case, family: str) -> CaseResult:
        return replace(HELD, id=check.id)


async def judged(judging: Judging, at_once: int, *more: Case) -> list[str]:
    chosen = [*choose(judging.target, ()), *(("made", case) for case in more)]
    results = main._judged(judging, chosen, at_once)  # pyright: ignore[reportArgumentType]
    return [each.id async for each in results]


async def test_cases_in_the_sandbox_run_one_after_another() -> None:
    judging = Judging(Target.SANDBOX)
    assert await judged(judging, 0) == [check.id for _, check in choose(Target.SANDBOX, ())]
    assert judging.most <= 4


async def test_cases_in_pods_share_the_room_that_there_is() -> None:
    judging = Judging(Target.KUBERNETES)
    assert sorted(await judged(judging, 8)) == sorted(check.id for _, check in choose(Target.KUBERNETES, ()))
    assert 6 <= judging.most <= 8
    assert "A42b" not in judging.order


async def test_a_case_that_cannot_be_judged_ends_the_others() -> None:
    case = Case(
        id="A99", title="", tries="", holds="", layer=Layer.PROBE, program="", control=Inside(), companion="one"
    )
    judging = Judging(Target.KUBERNETES)
    with pytest.raises(OSError, match="cannot be judged"):
        await judged(judging, 8, case)
    assert len(asyncio.all_tasks()) == 1


def test_report_of_pods_names_the_cluster_and_counts_what_does_not_apply() -> None:
    left_out = replace(HELD, id="A42b", verdict=Verdict.NOT_HERE, because="there are none")
    reached = replace(HELD, id="A49d", verdict=Verdict.CLUSTER, because="10.0.0.1 10250 refuses; deny it")
    report = Report(target=Target.KUBERNETES, host=CLUSTER, cases=[HELD, left_out, reached], took_s=3.0)
    assert report.held
    assert report.as_json()["target"] == "kubernetes"
    assert [case["because"] for case in report.as_json()["cases"]] == ["", left_out.because, reached.because]
    assert summary(report) == (
        "1 held, 0 held only as far as the kernel, 1 held only as far as the cluster, 0 failed, 1 does not apply, "
        "in 3 s (Kubernetes v1.34.4, containerd://2.1, Linux 6.1, RuntimeClass gvisor, user namespaces: yes, "
        "NetworkPolicy: enforced)"
    )
    more = replace(report, cases=[*report.cases, left_out])
    assert ", 2 do not apply, in 3 s" in summary(more)
    assert row(left_out, coloured=False).splitlines()[0].split()[:2] == ["n/a", "A42b"]
    assert "deny it" in row(reached, coloured=False)


NOWHERE = """\
apiVersion: v1
kind: Config
current-context: one
contexts: [{name: one, context: {cluster: one, user: one}}]
clusters: [{name: one, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: one, user: {token: none}}]
"""


def no_file(folder: Path) -> dict[str, str]:
    return {"KUBECONFIG": str(folder / "none")}


def no_cluster(folder: Path) -> dict[str, str]:
    (folder / "nowhere").write_text(NOWHERE)
    return {"KUBECONFIG": str(folder / "nowhere")}


def no_number(folder: Path) -> dict[str, str]:
    return {"CPU": "many"}


def in_no_pod(folder: Path) -> dict[str, str]:
    return {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (no_file, "there is no file"),
        (no_cluster, "code cannot be run here: Kubernetes does not answer"),
        (no_number, "kubernetes.cpu is no number of processors"),
        (in_no_pod, "set kubernetes.kubeconfig"),
    ],
)
def test_what_keeps_pods_from_being_proven_is_told_in_one_line(
    settings: Callable[[Path], dict[str, str]],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RUNTAPE_KUBERNETES__KUBECONFIG", raising=False)
    for name, value in settings(tmp_path).items():
        monkeypatch.setenv(f"RUNTAPE_KUBERNETES__{name}", value)
    monkeypatch.setattr("runtape.runtime.logging.configure_logging", lambda level: None)
    assert command(["prove", "--target", "kubernetes", "--data", str(tmp_path)]) == 1
    told = capfd.readouterr()
    assert told.err.startswith("error: ")
    assert said in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""
