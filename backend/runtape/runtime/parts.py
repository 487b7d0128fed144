"""How the parts of a cluster are reached: addresses, credentials and certificates, and what does not go together.

The other side's certificate is always checked, its name included: no setting switches that off, and a URL that asks
for it is refused.  Credentials leave this machine through TLS alone, unless `credentials_in_clear` says otherwise.
What is wrong is told by name and never by value, which may hold a password.
"""

import os
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr

REGISTRY_TIMEOUT_S = 10
"""How long the registry may take to answer; its client waits for ever otherwise."""

_BROKER = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d{1,5})?", re.ASCII)
_PORT = re.compile(r":\d*$")
_SWITCHED_OFF = ("0", "f", "false", "n", "no", "none", "optional")
_REDIS_CHECKS = ("ssl_cert_reqs", "ssl_check_hostname")
_MONGO_LENIENCE = ("tlsinsecure", "tlsallowinvalidcertificates", "tlsallowinvalidhostnames")


class Section(BaseModel):
    """Settings that belong together."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Certified(Section):
    """A part that is reached through TLS with files of this machine."""

    ca_file: Path | None = Field(
        default=None, description="certificates that the part is known by, PEM; those this machine trusts unless set"
    )
    certificate_file: Path | None = Field(
        default=None, description="the certificate that this process shows, PEM; none unless set"
    )
    key_file: Path | None = Field(default=None, description="the key of that certificate, PEM, without a password")

    @property
    def _certified(self) -> bool:
        return any((self.ca_file, self.certificate_file, self.key_file))

    def _file_problems(self, part: str) -> Iterator[str]:
        yield from _ca_problems(f"{part}.ca_file", self.ca_file)
        pair = {f"{part}.certificate_file": self.certificate_file, f"{part}.key_file": self.key_file}
        yield from _alone(pair)
        yield from _pair_problems(pair)

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.certificate_file is not None:
            context.load_cert_chain(self.certificate_file, self.key_file)
        return context


class KafkaSettings(_Certified):
    """Kafka, in the profile ``cluster``."""

    bootstrap: str | None = Field(default=None, description="brokers to begin with, host:port and commas")
    prefix: str = Field(default="", description="put before the names of topics and groups on a shared cluster")
    replication: int = Field(default=3, ge=1, description="copies of each topic that `runtape topics init` makes")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="whether brokers are spoken to through TLS (SSL), and with a user (SASL)"
    )
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="how that user proves itself"
    )
    username: str | None = Field(default=None, description="the user of SASL")
    password: SecretStr | None = Field(default=None, description="that user's password")

    def problems(self, *, credentials_in_clear: bool) -> Iterator[str]:
        """Yield what cannot be so."""
        protocol = self.security_protocol
        hosts = [_BROKER.fullmatch(each.strip()) for each in (self.bootstrap or "localhost").split(",")]
        if not all(hosts):
            yield "kafka.bootstrap is not host:port, or several with commas"
        if protocol.startswith("SASL"):
            for name in ("username", "password"):
                if not getattr(self, name):
                    yield f"kafka.security_protocol is {protocol}, which needs kafka.{name}"
        elif self.username is not None or self.password is not None:
            yield f"kafka.security_protocol is {protocol}, which uses neither kafka.username nor kafka.password"
        if not protocol.endswith("SSL") and self._certified:
            yield f"kafka.security_protocol is {protocol}, which uses no certificates, and files of them are set"
        yield from self._file_problems("kafka")
        if protocol == "SASL_PLAINTEXT" and not credentials_in_clear:
            yield from _in_clear("kafka", [found["host"] for found in hosts if found], "security_protocol SASL_SSL")

    def connection(self) -> dict[str, Any]:
        """Return what every client of Kafka is given."""
        connection: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap,
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol.endswith("SSL"):
            connection["ssl_context"] = self._context()
        if self.security_protocol.startswith("SASL"):
            connection["sasl_mechanism"] = self.mechanism
            connection["sasl_plain_username"] = self.username
            connection["sasl_plain_password"] = self.password.get_secret_value() if self.password else ""
        return connection


class RegistrySettings(_Certified):
    """The schema registry, in the profile ``cluster``."""

    url: str | None = Field(default=None, description="where Confluent's protocol is spoken, http or https")
    username: str | None = Field(default=None, description="the registry's user; none unless set")
    password: SecretStr | None = Field(default=None, description="that user's password")

    def problems(self, *, credentials_in_clear: bool) -> Iterator[str]:
        """Yield what cannot be so."""
        urls = [_parsed(each.strip(), ("http", "https")) for each in self.url.split(",")] if self.url else []
        found = [url for url in urls if url is not None]
        if len(found) < len(urls) or not all(url.hostname and _has_port(url) for url in found):
            yield "registry.url is not http:// or https:// with a host"
        if any("@" in url.netloc for url in found):
            yield "registry.url has a user in it, who belongs in registry.username and registry.password"
        yield from _alone({"registry.username": self.username, "registry.password": self.password})
        clear = [url for url in found if url.scheme == "http"]
        if clear and self._certified:
            yield "registry.url is http://, which uses no certificates, and files of them are set"
        yield from self._file_problems("registry")
        if self.username is not None and not credentials_in_clear:
            yield from _in_clear("registry", [url.hostname or "" for url in clear], "url https://")

    def connection(self) -> dict[str, Any]:
        """Return what the registry's client is given."""
        # Its client has a list of authorities of its own, and would not know those that this machine trusts.
        known = ssl.get_default_verify_paths()
        trusted = self.ca_file or known.cafile or known.capath
        connection: dict[str, Any] = {"url": self.url, "timeout": REGISTRY_TIMEOUT_S}
        if self.username is not None:
            password = self.password.get_secret_value() if self.password else ""
            connection["basic.auth.user.info"] = f"{self.username}:{password}"
        files = {"ca": trusted, "certificate": self.certificate_file, "key": self.key_file}
        return connection | {f"ssl.{name}.location": str(file) for name, file in files.items() if file is not None}


class MongoSettings(Section):
    """MongoDB, in the profile ``cluster``."""

    url: SecretStr | None = Field(default=None, description="connection string, with user, password and tls if need be")
    database: str = Field(default="runtape", description="the database that everything is in")
    username: str | None = Field(default=None, description="the user, unless the URL has one")
    password: SecretStr | None = Field(default=None, description="that user's password")
    ca_file: Path | None = Field(
        default=None, description="certificates that the part is known by, PEM; those this machine trusts unless set"
    )
    certificate_key_file: Path | None = Field(
        default=None, description="the certificate that this process shows and its key, in one file, PEM"
    )

    def problems(self, *, credentials_in_clear: bool) -> Iterator[str]:
        """Yield what cannot be so."""
        yield from _alone({"mongo.username": self.username, "mongo.password": self.password})
        yield from _ca_problems("mongo.ca_file", self.ca_file)
        yield from _pair_problems({"mongo.certificate_key_file": self.certificate_key_file})
        if self.url is None:
            return
        url = _parsed(self.url.get_secret_value(), ("mongodb", "mongodb+srv"))
        if url is None or not url.netloc.rpartition("@")[2]:
            yield _not_a_url("mongo", "mongodb://[user:password@]host[:port]")
            return
        user, _, hosts = url.netloc.rpartition("@")
        options = {name.lower(): value.lower() for name, value in parse_qsl(url.query, keep_blank_values=True)}
        for name in _MONGO_LENIENCE:
            if options.get(name, "false") != "false":
                yield f"mongo.url has {name}, and certificates are always checked"
        if user and self.username is not None:
            yield "mongo.url has a user, and mongo.username is set as well"
        tls = options.get("tls", options.get("ssl"))
        if tls == "false" and self._certified:
            yield "mongo.url says tls=false, and files of certificates are set"
        encrypted = tls == "true" or (tls is None and (url.scheme == "mongodb+srv" or self._certified))
        if (user or self.username is not None) and not encrypted and not credentials_in_clear:
            names = [_PORT.sub("", host) for host in hosts.split(",")]
            yield from _in_clear("mongo", names, "url ...?tls=true")

    @property
    def _certified(self) -> bool:
        return any((self.ca_file, self.certificate_key_file))

    def options(self) -> dict[str, Any]:
        """Return what the client is given beside the URL."""
        options: dict[str, Any] = {}
        if self.username is not None:
            options["username"] = self.username
            options["password"] = self.password.get_secret_value() if self.password else ""
        if self._certified:
            options["tls"] = True
        files = {"tlsCAFile": self.ca_file, "tlsCertificateKeyFile": self.certificate_key_file}
        return options | {name: str(file) for name, file in files.items() if file is not None}


class RedisSettings(_Certified):
    """Redis, in the profile ``cluster``."""

    url: SecretStr | None = Field(default=None, description="redis:// or rediss://, with user and password if need be")
    username: str | None = Field(default=None, description="the user, unless the URL has one; Redis's own unless set")
    password: SecretStr | None = Field(default=None, description="that user's password")

    def problems(self, *, credentials_in_clear: bool) -> Iterator[str]:
        """Yield what cannot be so."""
        if self.username is not None and self.password is None:
            yield "redis.username is set, and redis.password is not"
        yield from self._file_problems("redis")
        if self.url is None:
            return
        url = _parsed(self.url.get_secret_value(), ("redis", "rediss", "unix"))
        if url is None or not (url.hostname or url.scheme == "unix") or not _has_port(url):
            yield _not_a_url("redis", "redis[s]://[[user]:password@]host[:port][/number]")
            return
        options = dict(parse_qsl(url.query))
        for name in _REDIS_CHECKS:
            if options.get(name, "").lower() in _SWITCHED_OFF:
                yield f"redis.url has {name}, and certificates are always checked"
        user = "@" in url.netloc or "password" in options
        if user and self.password is not None:
            yield "redis.url has a user or a password, and redis.password is set as well"
        if url.scheme != "rediss" and self._certified:
            yield "redis.url is not rediss://, and files of certificates are set"
        if (user or self.password is not None) and url.scheme == "redis" and not credentials_in_clear:
            yield from _in_clear("redis", [url.hostname or ""], "url rediss://")

    def options(self) -> dict[str, Any]:
        """Return what the client is given beside the URL."""
        options: dict[str, Any] = {}
        if self.password is not None:
            options["password"] = self.password.get_secret_value()
        if self.username is not None:
            options["username"] = self.username
        files = {"ca_certs": self.ca_file, "certfile": self.certificate_file, "keyfile": self.key_file}
        return options | {f"ssl_{name}": str(file) for name, file in files.items() if file is not None}


def _parsed(url: str, schemes: Sequence[str]) -> SplitResult | None:
    """Return the URL's pieces, None when it is none: also where a piece of a password has become part of its path."""
    try:
        found = urlsplit(url)
    except ValueError:
        return None
    return found if found.scheme in schemes and "@" not in found.path + found.fragment else None


def _has_port(url: SplitResult) -> bool:
    try:
        return url.port is None or url.port > 0
    except ValueError:
        return False


def _not_a_url(part: str, form: str) -> str:
    return f"{part}.url is not {form}: a password with : / ? # [ ] @ or % in it is set as {part}.password"


def _in_clear(part: str, hosts: Sequence[str], fix: str) -> Iterator[str]:
    far = [host for host in hosts if not _is_here(host)]
    if far:
        yield (
            f"{part}: credentials would go to {', '.join(far)} in the clear: use {part}.{fix}, or set "
            f"credentials_in_clear where something else encrypts"
        )


def _is_here(host: str) -> bool:
    if host == "localhost" or host.startswith(("/", "%2F", "%2f")):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _alone(pair: Mapping[str, object]) -> Iterator[str]:
    lacking = [name for name, value in pair.items() if value is None]
    if len(lacking) == 1:
        yield f"{lacking[0]} is not set, and {next(name for name in pair if name not in lacking)} is"


def _unreadable(name: str, file: Path) -> Iterator[str]:
    if not file.is_file():
        yield f"{name}: there is no file {file}"
    elif not os.access(file, os.R_OK):
        yield f"{name}: {file} cannot be read"


def _ca_problems(name: str, file: Path | None) -> Iterator[str]:
    if file is None:
        return
    if found := list(_unreadable(name, file)):
        yield from found
        return
    try:
        ssl.create_default_context(cafile=file)
    except (ssl.SSLError, ValueError):
        yield f"{name}: {file} has no certificates in PEM"


def _pair_problems(pair: Mapping[str, Path | None]) -> Iterator[str]:
    """Yield what is wrong with a certificate and its key, which may be in one file."""
    files = {name: file for name, file in pair.items() if file is not None}
    found = [problem for name, file in files.items() for problem in _unreadable(name, file)]
    yield from found
    if found or len(files) < len(pair):
        return
    try:
        # A password would be asked for on the terminal otherwise.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(*files.values(), password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "no PEM"
        yield f"{' and '.join(files)}: no certificate with its key, in PEM and without a password ({reason})"
