"""Whether a pod that exists is one that we would make: what was demanded of it is there, and nothing else.

Nothing is looked for that is known to be bad.  What differs from the manifest is refused, but for the fields that the
API server and admission fill in and that no program gains anything by.
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from runtape.adapters.kubernetes.manifests import ATTEMPT, EXECUTION, OWNER, STATE
from runtape.adapters.kubernetes.quantities import quantity

_FILLED_IN: Final[Mapping[str, Mapping[str, Any]]] = {
    "spec": {
        "affinity": ...,
        "imagePullSecrets": ...,
        "nodeName": ...,
        "nodeSelector": ...,
        "overhead": ...,
        "preemptionPolicy": ...,
        "priority": ...,
        "priorityClassName": ...,
        "schedulerName": ...,
        "serviceAccount": "default",
        "serviceAccountName": "default",
        "tolerations": ...,
    },
    "spec.containers[0].securityContext": {"procMount": "Default"},
    # Where its node is, which the admission plugin PodTopologyLabels copies to every pod.
    "metadata.labels": {"topology.kubernetes.io/region": ..., "topology.kubernetes.io/zone": ...},
}
"""By place, what may be there without having been demanded, and with which value; ``...``: any."""
_FALSE_WHEN_ABSENT: Final = frozenset({"hostNetwork", "hostPID", "hostIPC", "stdinOnce"})
"""The booleans that the API leaves out when they are false; the absence of others means true."""
_AMOUNT: Final = re.compile(r"spec\.containers\[0]\.resources\..*|spec\.volumes\[\d+]\.emptyDir\.sizeLimit")
_OF_A_CLAIM: Final = frozenset({EXECUTION, ATTEMPT, OWNER, STATE})
"""The labels that a claim sets.  Any other may be one that a network policy selects pods by."""


def difference(live: Mapping[str, Any], demanded: Mapping[str, Any]) -> str | None:
    """Return where and how the pod `live` differs from the manifest `demanded`; None when it is as it should be."""
    labels = _different(_lasting_labels(live), _lasting_labels(demanded), "metadata.labels")
    return labels or _different(live["spec"], demanded["spec"], "spec")


def _lasting_labels(pod: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels that a pod has before a claim and after it."""
    labels: Mapping[str, str] = pod["metadata"].get("labels") or {}
    return {name: value for name, value in labels.items() if name not in _OF_A_CLAIM}


def _different(live: Any, demanded: Any, place: str) -> str | None:
    if isinstance(demanded, Mapping):
        return _different_fields(live, demanded, place) if isinstance(live, Mapping) else f"{place} is {live!r}"
    if isinstance(demanded, Sequence) and not isinstance(demanded, str):
        if not isinstance(live, Sequence) or isinstance(live, str) or len(live) != len(demanded):
            return f"{place} is {live!r}"
        parts = (_different(*pair, f"{place}[{at}]") for at, pair in enumerate(zip(live, demanded, strict=True)))
        return next((found for found in parts if found is not None), None)
    same = live == demanded or (_AMOUNT.fullmatch(place) and _amount(live) == _amount(demanded))
    return None if same else f"{place} is {live!r}, not {demanded!r}"


def _different_fields(live: Mapping[str, Any], demanded: Mapping[str, Any], place: str) -> str | None:
    for name, value in demanded.items():
        absent = False if name in _FALSE_WHEN_ABSENT else None
        if (found := _different(live.get(name, absent), value, f"{place}.{name}")) is not None:
            return found
    may_be = _FILLED_IN.get(place, {})
    for name in sorted(live.keys() - demanded.keys()):
        if name not in may_be or may_be[name] not in (..., live[name]):
            return f"{place}.{name} is {live[name]!r}, and was not demanded"
    return None


def _amount(text: Any) -> Decimal | None:
    """Return a quantity as a number; None when it is none."""
    try:
        return quantity(str(text))
    except ValueError:
        return None
