"""How a process reaches the cluster: as the file says that it was given, or as the pod that it runs in."""

from pathlib import Path
from typing import Any, Final

import yaml
from kubernetes_asyncio import client, config
from kubernetes_asyncio.config import ConfigException

from runtape.ports.errors import Permanent

_BEARER: Final = "BearerToken"


async def configuration(kubeconfig: Path | None) -> client.Configuration:
    """Return where the API is and as whom to ask it; None: as the service account of this process' own pod.

    Tokens that lie in a file are read again when it changes: bound ones live for an hour.
    Raises: Permanent, naming the file and what is wrong with it.
    """
    found = client.Configuration()
    if kubeconfig is None:
        try:
            config.load_incluster_config(client_configuration=found)
        except ConfigException as error:
            raise Permanent(f"this process is in no pod ({error}): set kubernetes.kubeconfig") from error
        return found
    try:
        await config.load_kube_config(str(kubeconfig), client_configuration=found, persist_config=False)
        token = _token_file(kubeconfig)
    except (ConfigException, OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise Permanent(f"kubernetes.kubeconfig: {kubeconfig} says of no cluster how to reach it: {error}") from error
    if token is not None:
        found.refresh_api_key_hook = _Token(token)
    return found


def _token_file(kubeconfig: Path) -> Path | None:
    """Return the file with the token of the user of the current context."""
    content: dict[str, Any] = yaml.safe_load(kubeconfig.read_text())
    contexts = {each["name"]: each["context"] for each in content["contexts"]}
    users = {each["name"]: each["user"] for each in content["users"]}
    named = users[contexts[content["current-context"]]["user"]].get("tokenFile")
    return kubeconfig.parent / named if named else None


class _Token:
    """Keeps a configuration's token that of a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen_ns = 0

    def __call__(self, of: client.Configuration) -> None:
        try:
            changed_ns = self._file.stat().st_mtime_ns
            if changed_ns != self._seen_ns:
                of.api_key[_BEARER] = f"Bearer {self._file.read_text().strip()}"
                self._seen_ns = changed_ns
        except OSError:
            return  # whoever renews it replaces it: the one at hand may still do
