"""What a process outside of a cluster needs to be one of its accounts, made as the cluster's administrator.

Each account gets a folder with ``kubeconfig``, which names the two files beside it: ``ca.pem`` and ``token``.  The
token is one that ends (TokenRequest); whoever keeps it fresh replaces the file, and processes read it again.
"""

import asyncio
import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml
from kubernetes_asyncio import client, config
from kubernetes_asyncio.config import ConfigException

from certs import files, objects
from certs.authority import State, Wrong
from certs.objects import MANIFESTS, PROGRAMS, SERVICE, Refused

ACCOUNTS: Final = ("k8s-worker", "pod-monitor", "api")
SHORTEST_S: Final = 600
"""The shortest life of a token that Kubernetes gives."""
PAUSE_S: Final = 5.0
"""Before it is tried again, when the cluster has refused or did not answer."""
_CARRIED_OUT: Final = ("Deployment", "DaemonSet", "Job", "Service", "ConfigMap", "PodDisruptionBudget")


@dataclass(frozen=True, slots=True)
class Token:
    """The token of an account, in a file, and what became of it."""

    account: str
    state: State
    until: datetime
    kubeconfig: Path


class Cluster:
    """A cluster, asked as its administrator; `close` ends the connection."""

    def __init__(self, configuration: client.Configuration, programs: str = PROGRAMS, service: str = SERVICE) -> None:
        self._configuration = configuration
        self._api = client.ApiClient(configuration)
        self._names = {PROGRAMS: programs, SERVICE: service}

    async def close(self) -> None:
        """End the connection."""
        await self._api.close()

    async def prepare(self) -> list[str]:
        """Make the namespaces, accounts, rights, bounds and policies, or bring them up to date; return their names.

        Raises: Refused.
        """
        found = [each for each in objects.read(MANIFESTS / "base") if not _is_carried_out(each)]
        made = []
        for thing in objects.renamed(found, self._names):
            await objects.apply(self._api, thing)
            made.append(f"{thing['kind']}/{thing['metadata']['name']}")
        return made

    async def give(self, account: str, folder: Path, *, lasting_s: int, renew_before_s: int) -> Token:
        """Have the folder `account` say how to be that account, with a token that lasts longer than `renew_before_s`.

        Raises: Refused; OSError.
        """
        place = folder / account
        kubeconfig, token = place / "kubeconfig", place / "token"
        until = _end_of(token)
        state = State.MADE if until is None else State.RENEWED
        if until is not None and (until - datetime.now(UTC)).total_seconds() > renew_before_s:
            state = State.KEPT
        else:
            service = self._names[SERVICE]
            path = f"/api/v1/namespaces/{service}/serviceaccounts/{account}/token"
            answer = await objects.asked(self._api, "POST", path, {"spec": {"expirationSeconds": lasting_s}})
            files.replace(token, answer["status"]["token"].encode())
            until = datetime.fromisoformat(answer["status"]["expirationTimestamp"])
        assert until is not None
        self._describe(account, kubeconfig)
        return Token(account, state, until, kubeconfig)

    def _describe(self, account: str, kubeconfig: Path) -> None:
        of = self._configuration
        cluster: dict[str, Any] = {"server": of.host}
        if of.ssl_ca_cert:
            _put(kubeconfig.with_name("ca.pem"), Path(of.ssl_ca_cert).read_bytes())
            cluster["certificate-authority"] = "ca.pem"
        if of.tls_server_name:
            cluster["tls-server-name"] = of.tls_server_name
        if of.proxy:
            cluster["proxy-url"] = of.proxy
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "runtape", "cluster": cluster}],
            "users": [{"name": account, "user": {"tokenFile": "token"}}],
            "contexts": [
                {
                    "name": account,
                    "context": {"cluster": "runtape", "user": account, "namespace": self._names[PROGRAMS]},
                }
            ],
            "current-context": account,
        }
        _put(kubeconfig, json.dumps(content, indent=1).encode() + b"\n")


async def administrator(kubeconfig: Path) -> client.Configuration:
    """Return how to ask as whom the file names.  Raises: Wrong."""
    found = client.Configuration()
    try:
        await config.load_kube_config(str(kubeconfig), client_configuration=found, persist_config=False)
    except yaml.YAMLError as error:
        raise Wrong(f"{kubeconfig} is no YAML") from error
    except (ConfigException, OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise Wrong(f"{kubeconfig} says of no cluster how to reach it: {error}") from error
    if not found.verify_ssl or not (found.host or "").startswith("https://"):
        raise Wrong(f"{kubeconfig} does not verify whom it reaches, and tokens would be shown to anybody")
    return found


async def keep_fresh(
    cluster: Cluster,
    accounts: Sequence[str],
    folder: Path,
    tell: Callable[[Token | Refused], None],
    *,
    lasting_s: int,
    renew_before_s: int,
) -> None:
    """Renew tokens before they end, for ever; `tell` is told of each that was, and of each try that failed."""
    while True:
        try:
            tokens = [
                await cluster.give(each, folder, lasting_s=lasting_s, renew_before_s=renew_before_s)
                for each in accounts
            ]
        except Refused as error:
            tell(error)
            await asyncio.sleep(PAUSE_S)
            continue
        for token in tokens:
            if token.state is not State.KEPT:
                tell(token)
        due_s = min((each.until - datetime.now(UTC)).total_seconds() for each in tokens) - renew_before_s
        await asyncio.sleep(max(1.0, due_s))


def _is_carried_out(thing: Mapping[str, Any]) -> bool:
    """Whether it is of the service's own processes, which are elsewhere; what is beside programs never is."""
    return thing["kind"] in _CARRIED_OUT and thing["metadata"]["namespace"] == SERVICE


def _put(path: Path, content: bytes) -> None:
    """Have the file say that; a file that does is left as it is."""
    if not path.exists() or path.read_bytes() != content:
        files.replace(path, content)


def _end_of(token: Path) -> datetime | None:
    """Return when the token of a file ends; None, when there is none that says so."""
    try:
        claims = token.read_text().split(".")[1]
        content = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return datetime.fromtimestamp(content["exp"], UTC)
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return None
