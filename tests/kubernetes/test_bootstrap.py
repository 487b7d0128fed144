"""Accounts of a real cluster as `python -m certs` makes them, for processes outside of it."""

import asyncio
import base64
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from kubernetes_asyncio import client

from certs import bootstrap
from certs.__main__ import main
from certs.bootstrap import ACCOUNTS, Cluster, Token
from certs.objects import Refused
from runtape.adapters.kubernetes.api import PodApi
from runtape.adapters.kubernetes.connection import configuration
from runtape.ports.errors import InfrastructureError, Permanent
from tests.deploy.composition import PROJECT
from tests.kubernetes.pods import eventually
from tests.rig.kubernetes.cluster import Kubernetes

pytestmark = [
    pytest.mark.needs("kubernetes", "own"),
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
PROGRAMS = "other-programs"
SERVICE = "other-service"
TIMES = {"lasting_s": 600, "renew_before_s": 200}


@pytest.fixture
async def cluster(kubernetes: Kubernetes) -> AsyncIterator[Cluster]:
    """The cluster, with the accounts in namespaces that an operator has chosen."""
    cluster = Cluster(await bootstrap.administrator(kubernetes.kubeconfig), PROGRAMS, SERVICE)
    await cluster.prepare()
    yield cluster
    await cluster.close()


@pytest.fixture
async def pods(cluster: Cluster, tmp_path: Path) -> AsyncIterator[PodApi]:
    """The pods, as the worker of a kubeconfig just made."""
    token = await cluster.give("k8s-worker", tmp_path, **TIMES)
    api = PodApi(await configuration(token.kubeconfig), PROGRAMS)
    yield api
    await api.close()


async def test_a_kubeconfig_is_the_account_in_its_namespace_alone(pods: PodApi, tmp_path: Path) -> None:
    assert (await pods.list("")).pods == []
    elsewhere = PodApi(await configuration(tmp_path / "k8s-worker/kubeconfig"), SERVICE)
    try:
        with pytest.raises(Permanent, match=f"system:serviceaccount:{SERVICE}:k8s-worker.*cannot list"):
            await elsewhere.list("")
    finally:
        await elsewhere.close()


async def test_what_it_makes_is_its_owners_alone_and_refers_to_the_token_by_its_file(
    cluster: Cluster, pods: PodApi, tmp_path: Path
) -> None:
    folder = tmp_path / "k8s-worker"
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "ca.pem": 0o600,
        "kubeconfig": 0o600,
        "token": 0o600,
    }
    said = yaml.safe_load((folder / "kubeconfig").read_text())
    assert said["users"] == [{"name": "k8s-worker", "user": {"tokenFile": "token"}}]
    assert (folder / "token").read_text() not in (folder / "kubeconfig").read_text()


async def test_a_token_that_has_long_to_go_is_kept(cluster: Cluster, pods: PodApi, tmp_path: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in (tmp_path / "k8s-worker").iterdir()}
    assert (await cluster.give("k8s-worker", tmp_path, **TIMES)).state == "kept"
    assert {path: (path.read_bytes(), path.stat().st_ino) for path in before} == before
    assert (await cluster.give("k8s-worker", tmp_path, lasting_s=1200, renew_before_s=700)).state == "renewed"


async def test_calls_go_on_when_a_token_that_has_ended_is_renewed(
    cluster: Cluster, pods: PodApi, kubernetes: Kubernetes, tmp_path: Path
) -> None:
    path = tmp_path / "k8s-worker/token"
    await pods.list("")
    path.write_text(ended(path.read_text(), kubernetes.folder / "credentials/tokens-key.pem"))
    with pytest.raises(InfrastructureError, match="401"):
        await pods.list("")
    token = await cluster.give("k8s-worker", tmp_path, **TIMES)
    assert token.state == "renewed" and token.until.timestamp() > time.time() + 500
    assert (await pods.list("")).pods == []


async def test_tokens_are_kept_fresh_and_calls_go_on_while_the_api_is_gone_for_a_while(
    cluster: Cluster, pods: PodApi, kubernetes: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "PAUSE_S", 0.1)
    told: asyncio.Queue[Token | Refused] = asyncio.Queue()
    times = {"lasting_s": 600, "renew_before_s": 599}  # so one is due each second
    keeping = asyncio.ensure_future(bootstrap.keep_fresh(cluster, ["k8s-worker"], tmp_path, told.put_nowait, **times))
    try:
        first, second = await told.get(), await told.get()
        assert isinstance(first, Token) and isinstance(second, Token) and second.until > first.until
        kubernetes.api_server.kill()
        while not isinstance(await told.get(), Refused):
            pass
        kubernetes.api_server.start()
        while not isinstance(await told.get(), Token):
            pass
        await eventually(lambda: answers(pods))
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def answers(pods: PodApi) -> bool:
    try:
        await pods.list("")
    except InfrastructureError as error:  # rights are known a moment after an API server has begun
        return "403" not in str(error)
    return True


async def test_the_command_makes_every_account_and_says_so_again(kubernetes: Kubernetes, tmp_path: Path) -> None:
    words = ["bootstrap", "--kubeconfig", str(kubernetes.kubeconfig), "--folder", str(tmp_path), "--json"]
    for state in ("made", "kept"):
        told = [json.loads(line) for line in (await said(*words)).splitlines()]
        assert [(each["account"], each["state"]) for each in told] == [(name, state) for name in ACCOUNTS]
    token = (tmp_path / "api/token").read_text()
    assert token not in str(told)
    api = client.ApiClient(await configuration(tmp_path / "api/kubeconfig"))
    try:
        nodes: Any = await client.CoreV1Api(api).list_node()
        assert len(nodes.items) == 1
    finally:
        await api.close()


async def test_the_command_that_keeps_tokens_fresh_ends_at_sigterm(kubernetes: Kubernetes, tmp_path: Path) -> None:
    words = ["--kubeconfig", str(kubernetes.kubeconfig), "--folder", str(tmp_path), "--account", "api", "--watch"]
    command = [sys.executable, "-m", "certs", "bootstrap", *words, "--lasting", "600", "--renew-before", "599"]
    process = await asyncio.create_subprocess_exec(*command, cwd=PROJECT, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert b"objects are as deploy/kubernetes has them" in await process.stdout.readline()
    assert (await process.stdout.readline()).startswith(b"api: made, until ")
    assert (await process.stdout.readline()).startswith(b"api: renewed, until ")
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0


async def test_a_certificate_is_the_account_as_well(kubernetes: Kubernetes, cluster: Cluster, tmp_path: Path) -> None:
    for name in ("ca.pem", "ca-key.pem"):
        given = (kubernetes.folder / "credentials" / f"cluster-{name}").read_bytes()
        (tmp_path / name).write_bytes(given)
    words = ["--folder", str(tmp_path), "--days", "10", "--renew-before", "5", "--service-namespace", SERVICE]
    assert main(["make", *words, "--account", "pod-monitor"]) == 0
    found = client.Configuration()
    found.host = (await configuration(kubernetes.kubeconfig)).host
    found.ssl_ca_cert = str(tmp_path / "ca.pem")
    found.cert_file = str(tmp_path / "client-pod-monitor/certificate.pem")
    found.key_file = str(tmp_path / "client-pod-monitor/key.pem")
    api = PodApi(found, PROGRAMS)
    try:
        assert (await api.list("")).pods == []
        with pytest.raises(Permanent, match=f"system:serviceaccount:{SERVICE}:pod-monitor.*cannot create"):
            await api.create(
                {"metadata": {"name": "none"}, "spec": {"containers": [{"name": "none", "image": "none"}]}}
            )
    finally:
        await api.close()


async def test_who_may_not_make_accounts_is_told_so(kubernetes: Kubernetes, pods: PodApi, tmp_path: Path) -> None:
    worker = tmp_path / "k8s-worker/kubeconfig"
    command = [sys.executable, "-m", "certs", "bootstrap", "--kubeconfig", str(worker), "--folder", str(tmp_path / "a")]
    process = await asyncio.create_subprocess_exec(*command, cwd=PROJECT, stderr=asyncio.subprocess.PIPE)
    _, error = await process.communicate()
    assert process.returncode == 1 and error.startswith(b"error: ") and b"403" in error
    assert not (tmp_path / "a").exists()


async def said(*words: str) -> str:
    command = [sys.executable, "-m", "certs", *words]
    process = await asyncio.create_subprocess_exec(*command, cwd=PROJECT, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


def ended(token: str, key_file: Path) -> str:
    """Return the token as the cluster would have signed it two hours ago, for an hour."""
    header, payload, _ = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    now = int(time.time())
    claims |= {"exp": now - 3600, "iat": now - 7200, "nbf": now - 7200}
    signed = f"{header}.{encoded(json.dumps(claims).encode())}"
    key: Any = load_pem_private_key(key_file.read_bytes(), None)
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
