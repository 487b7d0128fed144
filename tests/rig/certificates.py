"""A certificate authority for the parts of the rig: certificates for the loopback, made in a folder of the tests."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)
LOOPBACK: tuple[x509.GeneralName, ...] = (x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1")))
_USES = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, each in a file of its own and both in a third; all PEM."""

    certificate: Path
    key: Path
    both: Path


class Authority:
    """A certificate authority; `file` is its own certificate, valid for `lasting`, and `key` the key to sign with."""

    def __init__(self, folder: Path, name: str = "rig", lasting: timedelta = DAY) -> None:
        self._folder = folder
        self._lasting = lasting
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(f"{name} authority")
        now = datetime.now(UTC)
        certificate = (
            _builder(self._name, self._key.public_key(), now - DAY, now + lasting)
            .issuer_name(self._name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(signs=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{name}-ca.pem"
        self.file.write_bytes(certificate.public_bytes(Encoding.PEM))
        self.key = folder / f"{name}-ca-key.pem"
        _write_secret(self.key, _private(self._key))

    def pair(
        self,
        name: str,
        names: tuple[x509.GeneralName, ...] = LOOPBACK,
        *,
        group: str | None = None,
        expired: bool = False,
    ) -> Pair:
        """Return a certificate for `names`, fit for a server and for a client called `name` of the `group`.

        It is valid half as long as the authority, or until an hour ago.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        until = datetime.now(UTC) + (-DAY / 24 if expired else self._lasting / 2)
        certificate = (
            _builder(_named(name, group), key.public_key(), until - self._lasting / 2, until)
            .issuer_name(self._name)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_USES), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        public = certificate.public_bytes(Encoding.PEM)
        private = _private(key)
        pair = Pair(*(self._folder / f"{name}{end}.pem" for end in ("", "-key", "-both")))
        for file, content in ((pair.certificate, public), (pair.key, private), (pair.both, private + public)):
            _write_secret(file, content)
        return pair


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_secret(file: Path, content: bytes) -> None:
    file.touch(0o600)
    file.write_bytes(content)


def _named(name: str, group: str | None = None) -> x509.Name:
    of_group = [] if group is None else [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group)]
    return x509.Name([*of_group, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
