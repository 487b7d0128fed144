"""Certificates are made once, renewed in time, believed by TLS, and readable to nobody else."""

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from certs import files
from certs.__main__ import main
from certs.authority import Authority, Certificate, Holder, State, Wrong
from tests.deploy.composition import PROJECT

DAY = timedelta(days=1)
NOW = datetime.now(UTC).replace(microsecond=0)
API = Holder("api", "api.example", ("api.example", "localhost", "127.0.0.1"))
WORKER = Holder("client-k8s-worker", "system:serviceaccount:runtape:k8s-worker")
Make = Callable[..., list[Certificate]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(now: datetime = NOW, holders: tuple[Holder, ...] = (API, WORKER), **given: int) -> list[Certificate]:
        days = {"days": 90, "authority_days": 400, "renew_before_days": 30} | given
        return Authority(tmp_path, **days).carry_out(holders, now)

    return made


def states(made: list[Certificate]) -> list[str]:
    return [each.state for each in made]


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_ino) for path in folder.rglob("*") if path.is_file()}


def handshake(folder: Path, name: str = "localhost", trusting: bytes | None = None) -> Any:
    """Shake hands as the API with a worker that asks for `name`, and return whom the API sees."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "api/certificate.pem", folder / "api/key.pem")
    server.load_verify_locations(folder / "ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cadata=(trusting or (folder / "ca.pem").read_bytes()).decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_cert_chain(folder / WORKER.folder / "certificate.pem", folder / WORKER.folder / "key.pem")
    seen: list[Any] = []
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with theirs, server.wrap_socket(theirs, server_side=True) as connection:
                seen.append(connection.getpeercert())
                connection.sendall(b"ok")
        except (ssl.SSLError, OSError) as error:
            seen.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours, client.wrap_socket(ours, server_hostname=name) as connection:
            assert connection.recv(2) == b"ok"
    finally:
        thread.join()
    return dict(entry for (entry,) in seen[0]["subject"])


def test_both_sides_of_a_connection_believe_each_other(make: Make, tmp_path: Path) -> None:
    make()
    for name in ("localhost", "api.example", "127.0.0.1"):
        assert handshake(tmp_path, name) == {"organizationName": "runtape", "commonName": WORKER.name}
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(tmp_path, "other.example")


def test_openssl_verifies_them_for_what_they_are_and_no_other_use(make: Make, tmp_path: Path) -> None:
    make()

    def verified(holder: Holder, purpose: str) -> bool:
        command = ["openssl", "verify", "-x509_strict", "-CAfile", tmp_path / "ca.pem", "-purpose", purpose]
        done = subprocess.run(
            [*command, tmp_path / holder.folder / "certificate.pem"], capture_output=True, check=False
        )
        return done.returncode == 0

    assert verified(API, "sslserver") and not verified(API, "sslclient")
    assert verified(WORKER, "sslclient") and not verified(WORKER, "sslserver")


def test_a_second_run_changes_nothing(make: Make, tmp_path: Path) -> None:
    assert states(make()) == [State.MADE] * 3
    before = contents(tmp_path)
    assert states(make(NOW + 59 * DAY)) == [State.KEPT] * 3
    assert contents(tmp_path) == before


def test_a_certificate_is_renewed_before_it_ends_with_a_key_of_its_own(make: Make, tmp_path: Path) -> None:
    make()
    keys = {holder: (tmp_path / holder.folder / "key.pem").read_bytes() for holder in (API, WORKER)}
    renewed = make(NOW + 60 * DAY)
    assert states(renewed) == [State.KEPT, State.RENEWED, State.RENEWED]
    assert renewed[1].until == NOW + 150 * DAY and "it ends at" in renewed[1].reason
    assert all((tmp_path / holder.folder / "key.pem").read_bytes() != key for holder, key in keys.items())


def test_an_authority_is_replaced_before_a_certificate_would_outlive_it_and_believed_meanwhile(
    make: Make, tmp_path: Path
) -> None:
    began = NOW - 280 * DAY
    make(began)
    old = (tmp_path / "ca.pem").read_bytes()
    assert states(make(began + 179 * DAY)) == [State.KEPT, State.RENEWED, State.RENEWED]
    replaced = make(NOW)
    assert states(replaced) == [State.RENEWED] * 3
    assert "may not outlive it" in replaced[0].reason and "another authority" in replaced[1].reason
    both = (tmp_path / "ca.pem").read_bytes()
    assert both.endswith(old) and both.count(b"BEGIN CERTIFICATE") == 2
    handshake(tmp_path)
    handshake(tmp_path, trusting=both.removesuffix(old))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, trusting=old)
    assert states(make(NOW + 280 * DAY))[0] == State.RENEWED
    assert (tmp_path / "ca.pem").read_bytes().count(b"BEGIN CERTIFICATE") == 2, "the first has ended"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"names": ("api.example", "other.example")}, "its names were others"),
        ({"name": "other.example"}, "somebody else's"),
        ({"names": ()}, "somebody else's"),
    ],
)
def test_a_certificate_for_something_else_is_made_anew(make: Make, change: dict[str, Any], reason: str) -> None:
    make()
    given = {"folder": API.folder, "name": API.name, "names": API.names} | change
    _, api = make(holders=(Holder(**given),))
    assert api.state is State.RENEWED and reason in api.reason


@pytest.mark.parametrize(
    ("file", "reason"), [("certificate.pem", "is no certificate"), ("key.pem", "is no private key without a password")]
)
def test_what_cannot_be_read_is_made_anew(make: Make, tmp_path: Path, file: str, reason: str) -> None:
    make()
    (tmp_path / "api" / file).write_text("nonsense")
    _, api, worker = make()
    assert reason in api.reason and worker.state is State.KEPT
    handshake(tmp_path)


def test_a_key_that_is_not_its_own_is_noticed(make: Make, tmp_path: Path) -> None:
    make()
    (tmp_path / "api/key.pem").write_bytes((tmp_path / WORKER.folder / "key.pem").read_bytes())
    assert make()[1].reason == "the key is not its own"


@pytest.mark.parametrize("how", ["another", "none", "nonsense"])
def test_an_authority_without_its_key_is_not_replaced_in_silence(make: Make, tmp_path: Path, how: str) -> None:
    make()
    key = tmp_path / "ca-key.pem"
    if how == "another":
        key.write_bytes((tmp_path / "api/key.pem").read_bytes())
    elif how == "nonsense":
        key.write_text("nonsense")
    else:
        key.unlink()
    before = contents(tmp_path)
    with pytest.raises(Wrong, match=r"ca-key\.pem"):
        make()
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "given", [{"renew_before_days": 90}, {"renew_before_days": 0}, {"authority_days": 120}, {"days": 0}]
)
def test_days_that_would_renew_at_once_are_refused(make: Make, tmp_path: Path, given: dict[str, int]) -> None:
    with pytest.raises(Wrong, match="days"):
        make(**given)
    assert not contents(tmp_path)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a..b", "https://a", "a" * 64, "ä.example", "1.2.3.4/24"])
def test_a_name_that_is_none_is_refused_before_anything_is_made(make: Make, tmp_path: Path, name: str) -> None:
    with pytest.raises(Wrong, match="neither an address nor the name of a host"):
        make(holders=(API, Holder("frontend", name, (name,))))
    assert not contents(tmp_path)


def test_keys_are_their_owners_alone_whatever_the_umask(make: Make, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make()
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in contents(tmp_path)}
    assert {name for name, mode in modes.items() if mode == 0o600} == {name for name in modes if "key.pem" in name}
    assert all(mode & 0o022 == 0 for mode in modes.values())


def test_who_reads_while_a_file_is_replaced_sees_all_of_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.replace(path, b"old" * 1000)
    with path.open("rb") as reader:
        files.replace(path, b"new" * 2000)
        assert reader.read() == b"old" * 1000
    assert path.read_bytes() == b"new" * 2000
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_file_that_cannot_be_replaced_stays_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    files.replace(path, b"old")

    def fails(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        files.replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.needs("root")
def test_a_key_that_was_handed_to_another_user_stays_theirs(make: Make, tmp_path: Path) -> None:
    make()
    os.chown(tmp_path / "api/key.pem", 101, 101)
    make(NOW + 60 * DAY)
    found = (tmp_path / "api/key.pem").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (101, 101, 0o600)


WORDS = ["--api", "localhost", "--frontend", "runtape.example", "--account", "k8s-worker"]


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "certs", *words]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_says_what_it_did_and_shows_no_key(tmp_path: Path) -> None:
    first = run("make", "--folder", str(tmp_path), *WORDS)
    assert first.returncode == 0 and first.stdout.count(": made (there was none)") == 4
    second = run("make", "--folder", str(tmp_path), *WORDS)
    assert second.returncode == 0 and second.stdout.endswith("nothing had to be changed\n")
    third = run("make", "--folder", str(tmp_path), *WORDS, "--renew-before", "89", "--days", "90", "--json")
    told = json.loads(third.stdout)
    assert [each["holder"] for each in told] == ["authority", "api", "frontend", "client-k8s-worker"]
    assert {each["state"] for each in told} == {"kept"}
    assert [Path(each["certificate"]).is_file() for each in told] == [True] * 4
    assert "PRIVATE" not in first.stdout + first.stderr + second.stdout + third.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["make", "--api", "a b"], "'a b' is neither an address nor the name of a host"),
        (["make", "--api", "a", "--days", "10"], "cannot be renewed"),
        (["bootstrap", "--kubeconfig", "/nowhere"], "there is no file /nowhere"),
        (["bootstrap", "--kubeconfig", str(PROJECT / "pyproject.toml")], "pyproject.toml is no YAML"),
        (["bootstrap", "--kubeconfig", str(PROJECT / "docker-compose.yml")], "says of no cluster how to reach it"),
        (["bootstrap", "--kubeconfig", "/nowhere", "--lasting", "60"], "a token lasts 600 s at least"),
    ],
)
def test_wrong_words_are_told_in_one_line(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--folder", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and told in said.err and said.err.count("\n") == 1
    assert not contents(tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["make", "--folder", str(tmp_path / "file"), "--api", "localhost"]) == 1
    assert "File exists" in capsys.readouterr().err
