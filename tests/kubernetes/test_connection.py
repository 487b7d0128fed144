"""A process in a pod reaches the cluster as the service account of that pod, without a word of it in its settings."""

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes_asyncio import client
from kubernetes_asyncio.config import incluster_config

from runtape.adapters.kubernetes.connection import configuration
from runtape.ports.errors import Permanent
from tests.rig.given import GivenKubernetes
from tests.rig.kubernetes.cluster import Kubernetes

TOKEN, CA = "token", "ca.crt"
HOST, PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the kubelet mounts in a pod, where the process is to look for it: nothing yet."""
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / TOKEN))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / CA))
    monkeypatch.setenv(HOST, "fd00::1")
    monkeypatch.setenv(PORT, "443")
    return tmp_path


def mount(folder: Path, token: str, authority: str | Path) -> None:
    """Do as the kubelet; an authority is text or the file that has it."""
    (folder / TOKEN).write_text(token)
    (folder / CA).write_text(authority if isinstance(authority, str) else authority.read_text())


async def test_a_pod_says_where_the_api_is_and_as_whom_to_ask_it(mounted: Path) -> None:
    mount(mounted, "secret", "an authority")
    found = await configuration(None)
    assert (found.host, found.ssl_ca_cert) == ("https://[fd00::1]:443", str(mounted / CA))
    assert found.verify_ssl
    assert (await found.auth_settings())["BearerToken"]["value"] == "Bearer secret"


def _no_variables(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOST)


def _no_token(mounted: Path, _: pytest.MonkeyPatch) -> None:
    (mounted / TOKEN).unlink()


def _empty_token(mounted: Path, _: pytest.MonkeyPatch) -> None:
    (mounted / TOKEN).write_text("")


def _no_authority(mounted: Path, _: pytest.MonkeyPatch) -> None:
    (mounted / CA).unlink()


@pytest.mark.parametrize(
    ("take", "told"),
    [
        (_no_variables, r"\(Service host/port is not set\.\)"),
        (_no_token, r"\(Service token file does not exist\.\)"),
        (_empty_token, r"\(Token file exists but empty\.\)"),
        (_no_authority, r"\(Service certification file does not exists\.\)"),
    ],
)
async def test_where_there_is_neither_a_pod_nor_a_file_that_is_said(
    mounted: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[[Path, pytest.MonkeyPatch], None], told: str
) -> None:
    mount(mounted, "secret", "an authority")
    take(mounted, monkeypatch)
    with pytest.raises(Permanent, match=f"^this process is in no pod {told}: set kubernetes.kubeconfig$"):
        await configuration(None)


@pytest.fixture
async def asking(
    mounted: Path,
    kubernetes: Kubernetes | GivenKubernetes,
    api: client.CoreV1Api,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[client.AuthenticationV1Api]:
    """The API, as in a pod of the account `default`, whose token is looked at again each time."""
    known = await configuration(kubernetes.kubeconfig)
    where = urlsplit(known.host)
    monkeypatch.setenv(HOST, str(where.hostname))
    monkeypatch.setenv(PORT, str(where.port or 443))
    monkeypatch.setattr(incluster_config, "TOKEN_REFRESH_PERIOD", timedelta(0))
    assert isinstance(known.ssl_ca_cert, str)
    mount(mounted, await token_of(api, namespace, "default"), Path(known.ssl_ca_cert))
    async with client.ApiClient(await configuration(None)) as connection:
        yield client.AuthenticationV1Api(connection)


@pytest.mark.needs("kubernetes")
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_a_process_is_whom_the_token_of_its_pod_names_also_when_that_is_another_later(
    asking: client.AuthenticationV1Api, mounted: Path, api: client.CoreV1Api, namespace: str
) -> None:
    assert await asked_by(asking) == f"system:serviceaccount:{namespace}:default"
    other: Any = {"metadata": {"name": "other"}}
    await api.create_namespaced_service_account(namespace, other)
    (mounted / TOKEN).write_text(await token_of(api, namespace, "other"))
    assert await asked_by(asking) == f"system:serviceaccount:{namespace}:other"


async def token_of(api: client.CoreV1Api, namespace: str, account: str) -> str:
    """Return a token that Kubernetes gives the account."""
    wanted: Any = {"spec": {"audiences": [], "expirationSeconds": 600}}
    made: Any = await api.create_namespaced_service_account_token(account, namespace, wanted)
    return made.status.token


async def asked_by(api: client.AuthenticationV1Api) -> str:
    """Return as whom the API server knows who asks."""
    nothing: Any = {}
    review: Any = await api.create_self_subject_review(nothing)
    return review.status.user_info.username
