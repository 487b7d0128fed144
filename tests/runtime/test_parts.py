"""How the parts are reached: what does not go together is refused at once, all of it, and no password is told."""

import json
import os
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from runtape.runtime.parts import KafkaSettings, MongoSettings, RedisSettings, RegistrySettings
from runtape.runtime.settings import ENV_PREFIX, InvalidSettings, Settings, describe
from tests.cli.commands import runtape
from tests.rig.certificates import Authority, Pair

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "certificates")


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.pair("runtape")


def problems(monkeypatch: pytest.MonkeyPatch, env: Mapping[str, object]) -> list[str]:
    """Return what is wrong with the settings in `env`, whose names go without their prefix."""
    for name, value in env.items():
        monkeypatch.setenv(ENV_PREFIX + name, str(value))
    try:
        Settings.read()
    except InvalidSettings as error:
        assert SECRET not in str(error)
        return str(error).removeprefix("a setting is not valid: ").split("; ")
    return []


def test_everything_that_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: Pair) -> None:
    found = problems(
        monkeypatch,
        {
            "PROFILE": "cluster",
            "KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA__USERNAME": "runtape",
            "KAFKA__CERTIFICATE_FILE": pair.certificate,
            "REGISTRY__URL": "ftp://registry",
            "MONGO__PASSWORD": SECRET,
            "REDIS__CA_FILE": tmp_path / "nowhere.pem",
        },
    )
    assert found == [
        "the profile cluster needs RUNTAPE_KAFKA__BOOTSTRAP, RUNTAPE_MONGO__URL, RUNTAPE_REDIS__URL",
        "kafka.security_protocol is SASL_SSL, which needs kafka.password",
        "kafka.key_file is not set, and kafka.certificate_file is",
        "registry.url is not http:// or https:// with a host",
        "mongo.username is not set, and mongo.password is",
        f"redis.ca_file: there is no file {tmp_path}/nowhere.pem",
    ]


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "kafka-user-without-sasl": (
        {"KAFKA__SECURITY_PROTOCOL": "SSL", "KAFKA__USERNAME": "runtape", "KAFKA__PASSWORD": SECRET},
        "kafka.security_protocol is SSL, which uses neither kafka.username nor kafka.password",
    ),
    "kafka-files-without-tls": (
        {"KAFKA__CA_FILE": "{ca}"},
        "kafka.security_protocol is PLAINTEXT, which uses no certificates, and files of them are set",
    ),
    "kafka-is-no-url": (
        {"KAFKA__BOOTSTRAP": f"kafka://runtape:{SECRET}@kafka:9092"},
        "kafka.bootstrap is not host:port, or several with commas",
    ),
    "registry-user-in-the-url": (
        {"REGISTRY__URL": f"https://runtape:{SECRET}@registry"},
        "registry.url has a user in it, who belongs in registry.username and registry.password",
    ),
    "registry-files-without-tls": (
        {"REGISTRY__URL": "http://registry", "REGISTRY__CA_FILE": "{ca}"},
        "registry.url is http://, which uses no certificates, and files of them are set",
    ),
    "redis-files-without-tls": (
        {"REDIS__URL": "redis://redis", "REDIS__CA_FILE": "{ca}"},
        "redis.url is not rediss://, and files of certificates are set",
    ),
    "redis-two-passwords": (
        {"REDIS__URL": f"rediss://:{SECRET}@redis", "REDIS__PASSWORD": SECRET},
        "redis.url has a user or a password, and redis.password is set as well",
    ),
    "redis-user-alone": (
        {"REDIS__URL": "rediss://redis", "REDIS__USERNAME": "runtape"},
        "redis.username is set, and redis.password is not",
    ),
    "redis-unchecked": (
        {"REDIS__URL": "rediss://redis?ssl_cert_reqs=none"},
        "redis.url has ssl_cert_reqs, and certificates are always checked",
    ),
    "redis-unchecked-name": (
        {"REDIS__URL": "rediss://redis?ssl_check_hostname=False"},
        "redis.url has ssl_check_hostname, and certificates are always checked",
    ),
    "mongo-two-users": (
        {
            "MONGO__URL": f"mongodb://runtape:{SECRET}@mongo/?tls=true",
            "MONGO__USERNAME": "runtape",
            "MONGO__PASSWORD": SECRET,
        },
        "mongo.url has a user, and mongo.username is set as well",
    ),
    "mongo-files-without-tls": (
        {"MONGO__URL": "mongodb://mongo/?tls=false", "MONGO__CA_FILE": "{ca}"},
        "mongo.url says tls=false, and files of certificates are set",
    ),
    "mongo-unchecked": (
        {"MONGO__URL": "mongodb://mongo/?tls=true&tlsInsecure=true"},
        "mongo.url has tlsinsecure, and certificates are always checked",
    ),
    "mongo-unchecked-certificate": (
        {"MONGO__URL": "mongodb://mongo/?tls=true&tlsAllowInvalidCertificates=true"},
        "mongo.url has tlsallowinvalidcertificates, and certificates are always checked",
    ),
    "mongo-unchecked-name": (
        {"MONGO__URL": "mongodb://mongo/?tls=true&tlsAllowInvalidHostnames=true"},
        "mongo.url has tlsallowinvalidhostnames, and certificates are always checked",
    ),
    "no-certificates": (
        {"REDIS__CA_FILE": "{key}"},
        "redis.ca_file: {key} has no certificates in PEM",
    ),
    "a-key-of-another-certificate": (
        {"REGISTRY__CERTIFICATE_FILE": "{certificate}", "REGISTRY__KEY_FILE": "{other_key}"},
        "registry.certificate_file and registry.key_file: no certificate with its key, in PEM and without a password "
        "(KEY_VALUES_MISMATCH)",
    ),
    "a-certificate-without-its-key": (
        {"MONGO__CERTIFICATE_KEY_FILE": "{certificate}"},
        "mongo.certificate_key_file: no certificate with its key, in PEM and without a password (no PEM)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, pair: Pair, case: str
) -> None:
    files = {
        "ca": authority.file,
        "certificate": pair.certificate,
        "key": pair.key,
        "other_key": authority.pair("other").key,
    }
    env, told = REFUSED[case]
    assert problems(monkeypatch, {name: value.format(**files) for name, value in env.items()}) == [told.format(**files)]


def test_a_key_with_a_password_is_refused_and_asked_for_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: Pair
) -> None:
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", pair.key, "-aes256", "-passout", f"pass:{SECRET}", "-out", locked], check=True
    )
    env = {"REDIS__CERTIFICATE_FILE": pair.certificate, "REDIS__KEY_FILE": locked}
    (found,) = problems(monkeypatch, env)
    assert found.startswith("redis.certificate_file and redis.key_file: no certificate with its key")


CLEAR: dict[str, dict[str, str]] = {
    "kafka": {
        "KAFKA__BOOTSTRAP": "localhost:9092,{host}:9092",
        "KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA__USERNAME": "runtape",
        "KAFKA__PASSWORD": SECRET,
    },
    "registry": {
        "REGISTRY__URL": "http://{host}:8081",
        "REGISTRY__USERNAME": "runtape",
        "REGISTRY__PASSWORD": SECRET,
    },
    "mongo": {"MONGO__URL": f"mongodb://runtape:{SECRET}@[::1]:27017,{{host}}:27017/"},
    "mongo-settings": {"MONGO__URL": "mongodb://{host}", "MONGO__USERNAME": "runtape", "MONGO__PASSWORD": SECRET},
    "redis": {"REDIS__URL": f"redis://:{SECRET}@{{host}}:6379"},
    "redis-settings": {"REDIS__URL": "redis://{host}", "REDIS__PASSWORD": SECRET},
}


@pytest.mark.parametrize("case", CLEAR)
def test_credentials_leave_the_machine_encrypted_or_by_an_explicit_word(
    monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    part = case.partition("-")[0]
    far = {name: value.format(host="db.example") for name, value in CLEAR[case].items()}
    (found,) = problems(monkeypatch, far)
    assert found.startswith(f"{part}: credentials would go to db.example in the clear: use {part}.")
    assert problems(monkeypatch, {name: value.format(host="127.0.0.1") for name, value in CLEAR[case].items()}) == []
    assert problems(monkeypatch, {**far, "CREDENTIALS_IN_CLEAR": "true"}) == []


@pytest.mark.parametrize(
    "env",
    [
        {"MONGO__URL": f"mongodb+srv://runtape:{SECRET}@cluster.example/"},
        {"MONGO__URL": f"mongodb://runtape:{SECRET}@a.example,b.example/?tls=true&replicaSet=rs"},
        {"MONGO__URL": f"mongodb://runtape:{SECRET}@a.example/?ssl=true"},
        {"REDIS__URL": f"rediss://runtape:{SECRET}@redis.example:6380/2"},
        {"REDIS__URL": f"unix://runtape:{SECRET}@/run/redis.sock"},
        {"REGISTRY__URL": "https://a.example,https://b.example:8443/x", "REGISTRY__USERNAME": "a"}
        | {"REGISTRY__PASSWORD": SECRET},
    ],
)
def test_what_is_encrypted_or_stays_here_is_taken(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    assert problems(monkeypatch, env) == []


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("REDIS__URL", f"redis://runtape:{SECRET}/x@redis:6379"),
        ("REDIS__URL", f"redis://runtape:12/{SECRET}@redis:6379"),
        ("REDIS__URL", f"redis://runtape:1#{SECRET}@redis:6379"),
        ("REDIS__URL", f"http://{SECRET}@redis"),
        ("MONGO__URL", f"mongodb://runtape:12/{SECRET}@mongo"),
        ("MONGO__URL", f"mongodb://runtape:[{SECRET}@mongo"),
        ("MONGO__URL", f"{SECRET}"),
    ],
)
def test_a_url_that_its_password_tears_apart_is_refused_without_a_piece_of_it(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str
) -> None:
    (found,) = problems(monkeypatch, {name: url})
    part = name.partition("_")[0].lower()
    assert found.startswith(f"{part}.url is not {part}")
    assert f"{part}.password" in found
    assert "12" not in found


def test_what_a_client_is_given_verifies_the_other_side(authority: Authority, pair: Pair) -> None:
    files = {"ca_file": authority.file, "certificate_file": pair.certificate, "key_file": pair.key}
    kafka = KafkaSettings.model_validate({"bootstrap": "kafka:9093", "security_protocol": "SSL", **files}).connection()
    context = kafka["ssl_context"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert [each["issuer"] for each in context.get_ca_certs()] == [((("commonName", "rig authority"),),)]
    registry = RegistrySettings.model_validate({"url": "https://registry", **files}).connection()
    assert registry["ssl.ca.location"] == str(authority.file)
    assert RegistrySettings(url="https://registry").connection()["ssl.ca.location"] is not False
    redis = RedisSettings.model_validate({"url": "rediss://redis", **files}).options()
    assert redis == {
        "ssl_ca_certs": str(authority.file),
        "ssl_certfile": str(pair.certificate),
        "ssl_keyfile": str(pair.key),
    }
    assert MongoSettings(ca_file=authority.file).options() == {"tls": True, "tlsCAFile": str(authority.file)}


def test_no_password_is_shown_by_the_command_line(tmp_path: Path, authority: Authority) -> None:
    env = {
        "RUNTAPE_DATA": str(tmp_path),
        "RUNTAPE_KAFKA__BOOTSTRAP": "kafka:9093",
        "RUNTAPE_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "RUNTAPE_KAFKA__USERNAME": "runtape",
        "RUNTAPE_KAFKA__PASSWORD": SECRET,
        "RUNTAPE_REGISTRY__URL": "https://registry",
        "RUNTAPE_REGISTRY__USERNAME": "runtape",
        "RUNTAPE_REGISTRY__PASSWORD": SECRET,
        "RUNTAPE_MONGO__URL": f"mongodb+srv://runtape:{SECRET}@mongo.example",
        "RUNTAPE_REDIS__URL": f"rediss://:{SECRET}@redis",
    }
    for format in ([], ["--json"]):
        done = runtape("config", "show", *format, env=env)
        assert done.returncode == 0, done.stderr
        assert SECRET.encode() not in done.stdout + done.stderr
    shown = {row["name"]: row["value"] for row in json.loads(done.stdout)}
    assert {shown[f"{name}.password"] for name in ("kafka", "registry")} == {"********"}
    assert {shown[f"{name}.url"] for name in ("mongo", "redis")} == {"********"}
    assert shown["credentials_in_clear"] == "False"
    for name, value in (("RUNTAPE_REDIS", f"redis://:{SECRET}@redis"), ("RUNTAPE_MONGO__URL", f"mongodb://{SECRET}/@")):
        done = runtape("config", "show", env=env | {name: value})
        assert done.returncode != 0
        assert SECRET.encode() not in done.stdout + done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr.decode()


def test_the_password_is_in_no_text_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(monkeypatch, {"REDIS__URL": f"rediss://:{SECRET}@redis", "REGISTRY__PASSWORD": SECRET}) != []
    monkeypatch.setenv("RUNTAPE_REGISTRY__USERNAME", "runtape")
    assert SECRET not in repr(Settings.read()) + str(describe())
