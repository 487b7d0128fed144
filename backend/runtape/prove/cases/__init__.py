"""The battery: the cases of the catalogue of abuse that apply to a local sandbox, one module for each family.

Left out, as there is nothing yet that they could attack: an allow-list of hosts (A51), the detection of scans and
miners (A54), and what goes through the API (A55 to A64).
"""

from collections.abc import Sequence

from runtape.prove.case import Check

from . import artifacts, escape, network, resource, supervisor

FAMILIES: dict[str, Sequence[Check]] = {
    "resource": resource.CASES,
    "escape": escape.CASES,
    "supervisor": supervisor.CASES,
    "network": network.CASES,
    "artifacts": artifacts.CASES,
}
