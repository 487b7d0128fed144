"""Apache Kafka 4.4 as broker and controller in one process (KRaft), from Maven's repository.

Classes are loaded from an archive that the first start makes (AppCDS): two seconds instead of four.
"""

import hashlib
import os
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.x509 import DNSName

from tests.rig import maven
from tests.rig.certificates import Authority
from tests.rig.part import Part, free_port
from tests.rig.store import obtained

VERSION = "4.4.0"
CLUSTER_ID = "cnVudGFwZS1yaWcAAAAAAA"
_HEAP = ["-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
_API_VERSIONS = 18


def jars() -> Path:
    """Return the folder of Kafka's jars.  Raises: Unobtainable."""

    def make(folder: Path) -> None:
        pom = Path(__file__).with_name("kafka.pom.xml")
        maven.copy(["-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime"], folder)
        maven.check(folder, "kafka")

    return obtained(f"kafka-{VERSION}", make)


def _classpath() -> str:
    return ":".join(str(jar) for jar in sorted(jars().glob("*.jar")))


def _class_archive(java: str) -> Path:
    """Return where the archive of loaded classes is or will be: it fits one Java and one list of jars."""
    told = subprocess.run([java, "-version"], capture_output=True, check=True).stderr
    key = hashlib.sha256(told + _classpath().encode()).hexdigest()[:16]
    return jars().with_name(f"kafka-{VERSION}-{key}.jsa")


class Kafka(Part):
    """One broker, whose topics outlive a kill."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._controller_port = free_port()

    @property
    def bootstrap(self) -> str:
        """What clients connect to."""
        return f"127.0.0.1:{self.port}"

    def command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        java = maven.java(17)
        settings = self.folder / "server.properties"
        if not settings.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            format_it = ["format", "-t", CLUSTER_ID, "-c", str(settings), *self._users()]
            settings.write_text("".join(f"{name}={value}\n" for name, value in self._settings().items()))
            subprocess.run(
                [java, *_HEAP, "-cp", _classpath(), "kafka.tools.StorageTool", *format_it],
                check=True,
                capture_output=True,
            )
        archive = _class_archive(java)
        sharing = [f"-XX:SharedArchiveFile={archive}"] if archive.exists() else [f"-XX:ArchiveClassesAtExit={archive}"]
        return [java, *_HEAP, *sharing, "-cp", _classpath(), "kafka.Kafka", settings], os.environ

    def _users(self) -> Sequence[str]:
        """Return what makes the users while the storage is formatted."""
        return ()

    def _settings(self) -> Mapping[str, str | int | Path]:
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": self.folder / "data",
            "num.partitions": 3,
            "default.replication.factor": 1,
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 4,
            # A broker of its own has nobody to wait for.
            "group.initial.rebalance.delay.ms": 0,
            "group.coordinator.append.linger.ms": 0,
            # Some tests let their members be missed within seconds.
            "group.min.session.timeout.ms": 1000,
            # After a kill the old registration stands in the way until it expires.
            "broker.session.timeout.ms": 2000,
            "broker.heartbeat.interval.ms": 500,
            "log.cleaner.dedupe.buffer.size": 16 << 20,
            "num.network.threads": 2,
            "num.io.threads": 4,
        }

    def answers(self) -> bool:
        """Whether the broker tells which requests it knows."""
        header = struct.pack(">hhih", _API_VERSIONS, 0, 1, -1)
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(struct.pack(">i", len(header)) + header)
                return len(connection.recv(16)) > 0
        except OSError:
            return False


class SecureKafka(Kafka):
    """One whose other listeners are those of operators: TLS with a user, TLS with certificates of clients.

    ``SASL`` takes `user` with `password` by PLAIN and both SCRAMs, ``MUTUAL`` the authority's certificates,
    ``EXPIRED`` shows a certificate whose time is over, ``FOREIGN`` one for another name, and ``OPEN`` takes the user
    without TLS.
    """

    def __init__(self, folder: Path, authority: Authority, user: str, password: str) -> None:
        super().__init__(folder)
        self._authority = authority
        self._user = user
        self._password = password
        self._pairs = {
            "SASL": authority.pair("kafka"),
            "MUTUAL": authority.pair("kafka-mutual"),
            "EXPIRED": authority.pair("kafka-expired", expired=True),
            "FOREIGN": authority.pair("kafka-foreign", (DNSName("elsewhere.example"),)),
        }
        self.ports = {name: free_port() for name in (*self._pairs, "OPEN")}

    def bootstrap_of(self, listener: str) -> str:
        """What clients of that listener connect to."""
        return f"127.0.0.1:{self.ports[listener]}"

    def _users(self) -> Sequence[str]:
        user = f"[name={self._user},password={self._password}]"
        return [word for name in ("256", "512") for word in ("--add-scram", f"SCRAM-SHA-{name}={user}")]

    def _settings(self) -> Mapping[str, str | int | Path]:
        plain = super()._settings()
        ours = "".join(f",{name}://127.0.0.1:{port}" for name, port in self.ports.items())
        protocols = ",SASL:SASL_SSL,MUTUAL:SSL,EXPIRED:SSL,FOREIGN:SSL,OPEN:SASL_PLAINTEXT"
        settings: dict[str, str | int | Path] = {
            **plain,
            "listeners": f"{plain['listeners']}{ours}",
            "advertised.listeners": f"{plain['advertised.listeners']}{ours}",
            "listener.security.protocol.map": f"{plain['listener.security.protocol.map']}{protocols}",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.mutual.ssl.client.auth": "required",
        }
        for name, pair in self._pairs.items():
            listener = f"listener.name.{name.lower()}.ssl"
            settings |= {
                f"{listener}.keystore.type": "PEM",
                f"{listener}.keystore.location": pair.both,
                f"{listener}.truststore.type": "PEM",
                f"{listener}.truststore.location": self._authority.file,
            }
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        simple = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        for name in ("sasl", "open"):
            settings |= {
                f"listener.name.{name}.scram-sha-256.sasl.jaas.config": scram,
                f"listener.name.{name}.scram-sha-512.sasl.jaas.config": scram,
                f"listener.name.{name}.plain.sasl.jaas.config": f'{simple} user_{self._user}="{self._password}";',
            }
        return settings
