"""The battery: the cases of the catalogue of abuse, one module for each family.

Left out, as there is nothing yet that they could attack: an allow-list of hosts (A51), the detection of scans and
miners (A54), and what goes through the API (A55 to A63, and A64 but for pods).  A case says itself what differs where
its programs run in pods (`case.Check.in_pods`, `not_in_pods`); those of the last family are for pods alone.
"""

from collections.abc import Sequence

from runtape.prove.case import Check

from . import artifacts, escape, network, pod, resource, supervisor

FAMILIES: dict[str, Sequence[Check]] = {
    "resource": resource.CASES,
    "escape": escape.CASES,
    "supervisor": supervisor.CASES,
    "network": network.CASES,
    "artifacts": artifacts.CASES,
}
FAMILIES_OF_PODS: dict[str, Sequence[Check]] = {**FAMILIES, "pod": pod.CASES}
