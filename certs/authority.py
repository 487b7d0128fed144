"""The certificate authority of an installation, and what it signs: each certificate beside its key, all PEM.

A folder has ``ca.pem`` and ``ca-key.pem``, and for each holder a folder with ``certificate.pem`` and ``key.pem``.
While an authority is being replaced ``ca.pem`` has both, the new one first, until the old one ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs import files

EARLIER: Final = timedelta(minutes=5)
"""How long before it was made a certificate begins: other machines' clocks are behind."""
ORGANIZATION: Final = "runtape"


class Wrong(Exception):
    """What was asked for cannot be; the message says what and why."""


class State(StrEnum):
    """What became of a certificate."""

    MADE = "made"
    RENEWED = "renewed"
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who is to have a certificate: a server under its `names`, or, without any, a client called `name`."""

    folder: str
    name: str
    names: tuple[str, ...] = ()

    def alternatives(self) -> list[x509.GeneralName]:
        """Return the names as they stand in a certificate.  Raises: Wrong."""
        return [_general(name) for name in self.names]


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate of a folder, what became of it, and why it was not kept."""

    holder: str
    state: State
    reason: str
    until: datetime
    path: Path


class Authority:
    """Signs the certificates of a folder."""

    def __init__(self, folder: Path, *, days: int, authority_days: int, renew_before_days: int) -> None:
        """Prepare.  Raises: Wrong, when a certificate would be renewed as soon as it was made."""
        if not 0 < renew_before_days < days < authority_days - renew_before_days:
            raise Wrong(
                f"a certificate of {days} days cannot be renewed {renew_before_days} days before its end under an "
                f"authority of {authority_days} days: it would be at once, or would outlive the authority"
            )
        self._folder = folder
        self._lasting = timedelta(days=days)
        self._authority_lasting = timedelta(days=authority_days)
        self._margin = timedelta(days=renew_before_days)

    def carry_out(self, holders: Sequence[Holder], now: datetime) -> list[Certificate]:
        """Make what is missing and renew what is due, of the authority itself too; return all.

        Raises: Wrong; OSError.
        """
        for holder in holders:
            holder.alternatives()
        # Certificates are renewed under an authority that outlives them.
        own, certificate, key = self._authority(now)
        return [own, *(self._held(holder, certificate, key, now) for holder in holders)]

    def _authority(self, now: datetime) -> tuple[Certificate, x509.Certificate, ec.EllipticCurvePrivateKey]:
        path, key_path = self._folder / "ca.pem", self._folder / "ca-key.pem"
        known, reason = [], "there was none"
        if path.exists() or key_path.exists():
            known, key = _certificates(path), _key(key_path)
            if _public(known[0].public_key()) != _public(key.public_key()):
                raise Wrong(f"{key_path} is not the key of {path}: put back the right one, or remove both")
            until = known[0].not_valid_after_utc
            if until - now > self._margin + self._lasting:
                return Certificate("authority", State.KEPT, "", until, path), known[0], key
            reason = f"it ends at {until.isoformat()}, and certificates may not outlive it"
        key = ec.generate_private_key(ec.SECP256R1())
        named = _name("Runtape authority")
        until = now + self._authority_lasting
        certificate = (
            _builder(named, key, now, until)
            .issuer_name(named)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        still = [each for each in known if each.not_valid_after_utc > now]
        files.replace(key_path, _private(key))
        files.replace(path, b"".join(each.public_bytes(Encoding.PEM) for each in [certificate, *still]), 0o644)
        state = State.RENEWED if known else State.MADE
        return Certificate("authority", state, reason, certificate.not_valid_after_utc, path), certificate, key

    def _held(
        self, holder: Holder, authority: x509.Certificate, signing: ec.EllipticCurvePrivateKey, now: datetime
    ) -> Certificate:
        path, key_path = (self._folder / holder.folder / name for name in ("certificate.pem", "key.pem"))
        there = path.exists() and key_path.exists()
        reason = self._due(holder, path, key_path, authority, now) if there else "there was none"
        if reason is None:
            return Certificate(holder.folder, State.KEPT, "", _certificates(path)[0].not_valid_after_utc, path)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(_name(holder.name, ORGANIZATION), key, now, now + self._lasting)
            .issuer_name(authority.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_purpose(holder)]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
        )
        if holder.names:
            names = x509.SubjectAlternativeName(holder.alternatives())
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(signing, hashes.SHA256())
        # A key without its certificate, should this be cut off between the two, is noticed by the next run.
        files.replace(key_path, _private(key))
        files.replace(path, certificate.public_bytes(Encoding.PEM), 0o644)
        state = State.RENEWED if there else State.MADE
        return Certificate(holder.folder, state, reason, certificate.not_valid_after_utc, path)

    def _due(
        self, holder: Holder, path: Path, key_path: Path, authority: x509.Certificate, now: datetime
    ) -> str | None:
        """Return why a certificate has to be made anew; None: it does not."""
        try:
            certificate, key = _certificates(path)[0], _key(key_path)
        except Wrong as error:
            return str(error)
        try:
            certificate.verify_directly_issued_by(authority)
        except (InvalidSignature, ValueError, TypeError):
            return "another authority has signed it"
        if _public(certificate.public_key()) != _public(key.public_key()):
            return "the key is not its own"
        if certificate.subject != _name(holder.name, ORGANIZATION) or _purposes(certificate) != [_purpose(holder)]:
            return "it was somebody else's"
        if _alternatives(certificate) != set(holder.alternatives()):
            return "its names were others"
        until = certificate.not_valid_after_utc
        return f"it ends at {until.isoformat()}" if until - now <= self._margin else None


def _purpose(holder: Holder) -> x509.ObjectIdentifier:
    return ExtendedKeyUsageOID.SERVER_AUTH if holder.names else ExtendedKeyUsageOID.CLIENT_AUTH


def _purposes(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return []


def _alternatives(certificate: x509.Certificate) -> set[x509.GeneralName]:
    try:
        return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return set()


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    labels = name.removeprefix("*.").split(".")
    if len(name) <= 253 and all(
        0 < len(each) < 64 and each.isascii() and each.replace("-", "a").isalnum() and each.strip("-") == each
        for each in labels
    ):
        return x509.DNSName(name)
    raise Wrong(f"{name!r} is neither an address nor the name of a host")


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Wrong(f"{path} is no certificate: {error}") from None


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the key of a file; errors of the library are not told on, as they may quote it.  Raises: Wrong."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise Wrong(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise Wrong(f"{path} is no private key without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Wrong(f"{path} is not a key of an elliptic curve")
    return key


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _name(name: str, organization: str | None = None) -> x509.Name:
    of = [] if organization is None else [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)]
    return x509.Name([*of, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
