"""Kubernetes with one node, on a machine of its own within this one: it begins empty whenever it is started."""

import http.client
import json
import shlex
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.rig.kubernetes import images, programs
from tests.rig.kubernetes.components import (
    KUBELET_ROOT,
    NODE,
    ApiServer,
    Component,
    Containerd,
    Controllers,
    Credentials,
    Etcd,
    Forwarder,
    Kubelet,
    Kwok,
    Scheduler,
)
from tests.rig.kubernetes.machine import ANSWER_S, Machine

SAID_CHARACTERS = 1000


class Kubernetes(Machine):
    """A cluster; each of its components can be killed and started by itself.

    `port` of the loopback is the API's, and `kubeconfig` says how to be its administrator; `kubectl` is a program.
    """

    ready_s = 180.0
    look_again_s = 0.1

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._credentials = Credentials(folder / "credentials")
        self.kubeconfig = folder / "credentials/admin.kubeconfig"
        self.kubectl = folder / "bin/kubectl"
        self.etcd = Etcd(self, self._credentials)
        self.containerd = Containerd(self, self._credentials)
        self.api_server = ApiServer(self, self._credentials)
        self.controllers = Controllers(self, self._credentials)
        self.scheduler = Scheduler(self, self._credentials)
        self.kubelet = Kubelet(self, self._credentials)
        self.forwarder = Forwarder(self)
        self.kwok = Kwok(self, self._credentials)
        """Not begun with the others, of which it is none."""

    @property
    def components(self) -> tuple[Component, ...]:
        """Its components, those last that depend on others."""
        return (self.etcd, self.containerd, self.api_server, self.controllers, self.scheduler, self.kubelet)

    def begin(self) -> None:
        programs.obtain()
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            super().begin()
            self._begin_components()
        except BaseException:
            self.kill()
            raise

    def _begin_components(self) -> None:
        known = self._credentials
        known.make()
        known.kubeconfig("admin", self.port, known.admin)
        self.kubectl.parent.mkdir()
        self.kubectl.write_text(f'#!/bin/sh\nexec {shlex.quote(str(programs.HYPERKUBE.path()))} kubectl "$@"\n')
        self.kubectl.chmod(0o755)
        self.forwarder.port = self.port
        # The names of its sockets are longer than its own by more than what a path of the tests may leave of 107 bytes.
        self.place(self.kubelet.folder / "root", KUBELET_ROOT)
        with ThreadPoolExecutor(1) as beside:
            for part in (self.etcd, self.containerd, self.api_server, self.forwarder):
                part.begin()
            images_taken = beside.submit(self._take_images)
            self.api_server.until_ready()  # the others give up, or wait long until they ask again
            self.containerd.until_ready()
            for part in (self.controllers, self.scheduler, self.kubelet):
                part.begin()
            images_taken.result()
        self.forwarder.until_ready()

    def _take_images(self) -> None:
        self.containerd.until_ready()
        for archive in (programs.pause_image(), *map(programs.image, images.RECIPES)):
            self.containerd.take(archive)

    def answers(self) -> bool:
        """Whether pods can be run, which need a node that has told of itself, and a service account."""
        node = self._read(f"/api/v1/nodes/{NODE}")
        if node is None or node["spec"].get("taints"):
            return False
        ready = any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"])
        return ready and self._read("/api/v1/namespaces/default/serviceaccounts/default") is not None

    def _read(self, path: str) -> Any:
        try:
            context = self._credentials.context()
        except OSError:
            return None
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=ANSWER_S, context=context)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return json.loads(answer.read()) if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def has_ended(self) -> bool:
        return super().has_ended() or any(part.has_ended() for part in self.components)

    def said(self) -> str:
        return "\n".join(
            f"{part.name}: {part.said()[-SAID_CHARACTERS:]}" for part in self.components if part.log.exists()
        )

    def pause(self) -> None:
        """Let all components stand still; pods go on."""
        for part in self.components:
            part.pause()

    def resume(self) -> None:
        for part in self.components:
            part.resume()

    def _end(self, number: signal.Signals) -> None:
        super()._end(number)
        self.forwarder.stop()
        for part in (*self.components, self.kwok):
            part.forget()
        shutil.rmtree(self.containerd.root, ignore_errors=True)  # it would be in the way of nobody but the disk
