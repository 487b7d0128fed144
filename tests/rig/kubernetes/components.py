"""What Kubernetes consists of, each a process of a machine: begun, killed and paused by itself.

Ports are the usual ones, on the machine's own loopback; only the kubelet's is at the node's address.
"""

import json
import os
import socket
import ssl
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509

from tests.rig import debian
from tests.rig.certificates import DAY, LOOPBACK, Authority, Pair
from tests.rig.kubernetes import images, programs
from tests.rig.kubernetes.machine import ADDRESS, BRIDGE, Inner, Machine
from tests.rig.part import STOP_S, Part

NODE = "node1"
POD_RANGE = "10.244.0.0/16"
SERVICE_RANGE = "10.96.0.0/24"
SERVICE_ADDRESS = "10.96.0.1"
ETCD_PORT, API_PORT = 2379, 6443
CONTROLLERS_PORT, SCHEDULER_PORT = 10257, 10259
KUBELET_PORT, KUBELET_HEALTH_PORT = 10250, 10248
KWOK_PORT = 10247
KWOK_RANGE = "10.250.0.0/16"
AUDITED = {"level": "Metadata", "omitStages": ["RequestReceived", "ResponseStarted"], "resources": [{"group": ""}]}
STAGES = Path(__file__).parent / "kwok_stages.yaml"
SOCKET = Path("/run/containerd/containerd.sock")
KUBELET_ROOT = Path("/var/lib/kubelet")
MASTERS = "system:masters"
LASTING = 60 * DAY
PROJECT = Path(__file__).parents[3]


def _names(*addresses: str) -> tuple[x509.GeneralName, ...]:
    return tuple(x509.IPAddress(ip_address(address)) for address in addresses)


class Credentials:
    """The authority of a cluster, the certificates of its components, and what each reaches the API with."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self) -> None:
        """Make all of them anew, in the folder."""
        self.authority = Authority(self._folder, "cluster", LASTING)
        services = tuple(x509.DNSName(f"kubernetes{end}") for end in ("", ".default", ".default.svc"))
        self.api = self.authority.pair("api", (*LOOPBACK, *_names(SERVICE_ADDRESS, ADDRESS), *services))
        self.api_at_kubelet = self.authority.pair("api-at-kubelet", group=MASTERS)
        self.kubelet = self.authority.pair("kubelet", (*_names(ADDRESS), x509.DNSName(NODE)))
        self.tokens = self.authority.pair("tokens")
        self.admin = self.authority.pair("admin", group=MASTERS)

    def context(self) -> ssl.SSLContext:
        """Return how the administrator connects to the API, also of a cluster that another process has started.

        Raises: OSError, when none has.
        """
        context = ssl.create_default_context(cafile=self._folder / "cluster-ca.pem")
        context.load_cert_chain(self._folder / "admin.pem", self._folder / "admin-key.pem")
        return context

    def kubeconfig(self, name: str, port: int, pair: Pair) -> Path:
        """Return a file that says how to reach the API at that port of the loopback, as whom the pair names."""
        cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(self.authority.file)}
        user = {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "rig", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": name}}],
            "current-context": "rig",
        }
        return _written(self._folder / f"{name}.kubeconfig", content)

    def of_component(self, name: str, user: str, group: str | None = None) -> Path:
        """Return what a component on the machine reaches the API with."""
        return self.kubeconfig(name, API_PORT, self.authority.pair(user, group=group))


def _written(file: Path, content: Mapping[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1))
    return file


class Component(Inner):
    """A process on the machine."""

    ready_s = 120.0
    look_again_s = 0.05

    def __init__(self, machine: Machine, credentials: Credentials) -> None:
        super().__init__(machine.folder / self.name)
        self.machine = machine
        self.credentials = credentials

    @abstractmethod
    def arguments(self) -> Sequence[str | Path]:
        """Return the command as the machine runs it.  Raises: Unobtainable."""

    def command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        return self.machine.within(self.arguments()), {**os.environ, **self.environment()}

    def environment(self) -> Mapping[str, str]:
        """Return what it needs beside the environment of the tests.  Raises: Unobtainable."""
        return {}

    def forget(self) -> None:
        """Wait until it is seen that the process ended with its machine."""
        if self._process is not None:
            self._process.wait(STOP_S)
            self._process = None


def _hyperkube(component: str, options: Mapping[str, str | Path]) -> list[str | Path]:
    return [programs.HYPERKUBE.path(), component, *(f"--{name}={value}" for name, value in options.items())]


class Etcd(Component):
    """What keeps all state."""

    def arguments(self) -> Sequence[str | Path]:
        url = f"http://127.0.0.1:{ETCD_PORT}"
        options = {
            "name": "only",
            "data-dir": self.folder / "data",
            "unsafe-no-fsync": "true",  # a killed process loses nothing that the kernel has
            "log-level": "warn",
            "listen-client-urls": url,
            "advertise-client-urls": url,
        }
        return _hyperkube("etcd", options)

    def answers(self) -> bool:
        return self.machine.status_of(ETCD_PORT, "/health", encrypted=False) == 200


class ApiServer(Component):
    """What everybody speaks to; one that is `audited` writes down who asked for what."""

    audited = False

    @property
    def audit(self) -> Path:
        """Where it writes that, an object in JSON on each line."""
        return self.folder / "audit.log"

    def arguments(self) -> Sequence[str | Path]:
        known = self.credentials
        options = {
            "etcd-servers": f"http://127.0.0.1:{ETCD_PORT}",
            "bind-address": "127.0.0.1",
            "secure-port": str(API_PORT),
            "advertise-address": ADDRESS,
            "endpoint-reconciler-type": "none",  # it would not tell pods of a loopback
            "service-cluster-ip-range": SERVICE_RANGE,
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "default-unreachable-toleration-seconds": "5",  # of its own accord pods wait 300 s for a node that is lost
            "tls-cert-file": known.api.certificate,
            "tls-private-key-file": known.api.key,
            "client-ca-file": known.authority.file,
            "kubelet-client-certificate": known.api_at_kubelet.certificate,
            "kubelet-client-key": known.api_at_kubelet.key,
            "kubelet-certificate-authority": known.authority.file,
            "kubelet-preferred-address-types": "InternalIP",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": known.tokens.certificate,
            "service-account-signing-key-file": known.tokens.key,
            "profiling": "false",
        }
        if self.audited:
            policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [AUDITED]}
            options |= {
                "audit-policy-file": _written(self.folder / "audit.json", policy),
                "audit-log-path": self.audit,
            }
        return _hyperkube("kube-apiserver", options)

    def answers(self) -> bool:
        return self.machine.status_of(API_PORT, "/readyz") == 200


def _as_client(kubeconfig: Path) -> dict[str, str | Path]:
    return {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "bind-address": "127.0.0.1",
        "leader-elect": "false",
    }


class Controllers(Component):
    """The controller manager, for which a node is lost that says nothing for `node_grace_s`."""

    node_grace_s = 50

    def arguments(self) -> Sequence[str | Path]:
        known = self.credentials
        options = {
            **_as_client(known.of_component("controllers", "system:kube-controller-manager")),
            "use-service-account-credentials": "true",
            "service-account-private-key-file": known.tokens.key,
            "root-ca-file": known.authority.file,
            "cluster-signing-cert-file": known.authority.file,
            "cluster-signing-key-file": known.authority.key,
            "flex-volume-plugin-dir": self.folder / "volumes",
            "node-monitor-period": "1s",  # only then is a node found ready; of its own accord it looks every 5 s
            "node-monitor-grace-period": f"{self.node_grace_s}s",
            "controllers": "*,-bootstrap-signer-controller,-token-cleaner-controller",
        }
        return _hyperkube("kube-controller-manager", options)

    def answers(self) -> bool:
        return self.machine.status_of(CONTROLLERS_PORT, "/healthz") == 200


class Scheduler(Component):
    """What gives pods a node."""

    def arguments(self) -> Sequence[str | Path]:
        options = _as_client(self.credentials.of_component("scheduler", "system:kube-scheduler"))
        # Of its own accord it binds 50 pods a second.
        return _hyperkube("kube-scheduler", {**options, "kube-api-qps": "1000", "kube-api-burst": "1000"})

    def answers(self) -> bool:
        return self.machine.status_of(SCHEDULER_PORT, "/healthz") == 200


class Containerd(Component):
    """What runs containers, with runc, and gives them their network."""

    @property
    def root(self) -> Path:
        """Where it keeps images and what containers write, half a gigabyte with nothing but the images."""
        return self.folder / "root"

    def arguments(self) -> Sequence[str | Path]:
        root = programs.runtime()
        return [root / "usr/bin/containerd", "--config", self._settings(root)]

    def environment(self) -> Mapping[str, str]:
        root = programs.runtime()
        found = (root / "usr/bin", root / "usr/sbin", os.environ["PATH"])  # the shim among others
        return {**debian.environment(root), "PATH": ":".join(map(str, found))}

    def _settings(self, root: Path) -> Path:
        plugins = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": BRIDGE,
                    "isGateway": False,  # pods see each other and the node, and nobody beyond
                    "ipMasq": False,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(self.folder / "addresses"),
                        "ranges": [[{"subnet": POD_RANGE, "gateway": ADDRESS}]],
                    },
                }
            ],
        }
        _written(self.folder / "cni/10-pods.conflist", plugins)
        file = self.folder / "config.toml"
        # Who lacks CAP_SYS_RESOURCE may not protect a sandbox from the OOM killer; runc would say nothing but "EOF".
        file.write_text(f"""version = 2
root = "{self.root}"
state = "/run/containerd/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{images.PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{root / "usr/lib/cni"}"
    conf_dir = "{self.folder / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = "{root / "usr/sbin/runc"}"
""")
        return file

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.machine.path(SOCKET)))
            except OSError:
                return False
        return True

    def take(self, archive: Path) -> None:
        """Let it have an image."""
        client = programs.runtime() / "usr/bin/ctr"
        self.machine.run(client, "--address", SOCKET, "--namespace", "k8s.io", "images", "import", archive)


class Kubelet(Component):
    """What keeps the pods of the node."""

    def arguments(self) -> Sequence[str | Path]:
        known = self.credentials
        resolver = self.folder / "resolv.conf"
        resolver.parent.mkdir(parents=True, exist_ok=True)
        resolver.touch()
        settings = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": ADDRESS,
            "port": KUBELET_PORT,
            "readOnlyPort": 0,
            "healthzPort": KUBELET_HEALTH_PORT,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(known.authority.file)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(known.kubelet.certificate),
            "tlsPrivateKeyFile": str(known.kubelet.key),
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.machine.control_group,
            "failCgroupV1": False,
            "failSwapOn": False,
            "resolvConf": str(resolver),
            "podLogsDir": str(self.folder / "logs"),
            "volumePluginDir": str(self.folder / "volumes"),
            "maxPods": 250,
            "podPidsLimit": 256,
            "seccompDefault": True,
            # Images cannot be had again, and the disk may be as full as it is.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
                "nodefs.inodesFree": "1%",
            },
            "makeIPTablesUtilChains": False,
        }
        options = {
            "config": _written(self.folder / "config.json", settings),
            "kubeconfig": known.of_component("kubelet", f"system:node:{NODE}", "system:nodes"),
            "root-dir": KUBELET_ROOT,
            "cert-dir": self.folder,
            "hostname-override": NODE,
            "node-ip": ADDRESS,
        }
        return _hyperkube("kubelet", options)

    def answers(self) -> bool:
        return self.machine.status_of(KUBELET_HEALTH_PORT, "/healthz", encrypted=False) == 200


class Kwok(Component):
    """What plays the kubelet of every node with the label ``type=kwok``: no program runs there, whatever pods say."""

    def arguments(self) -> Sequence[str | Path]:
        options = {
            "kubeconfig": self.credentials.of_component("kwok", "kwok", "system:masters"),
            "config": STAGES,
            "manage-nodes-with-label-selector": "type=kwok",
            "cidr": KWOK_RANGE,
            "node-ip": ADDRESS,
            "node-lease-duration-seconds": "40",
            "server-address": f"127.0.0.1:{KWOK_PORT}",
        }
        return [programs.KWOK.path(), *(f"--{name}={value}" for name, value in options.items())]

    def answers(self) -> bool:
        return self.machine.status_of(KWOK_PORT, "/healthz", encrypted=False) == 200


class Forwarder(Part):
    """The way from a port of the loopback here to the API; without it, the API is there and cannot be reached."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.folder / "forwarder")
        self.port = machine.port
        self._machine = machine

    def command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        module = "tests.rig.kubernetes.forwarder"
        command = [sys.executable, "-P", "-m", module, str(self.port), str(self._machine.pid), str(API_PORT)]
        return command, {**os.environ, "PYTHONPATH": str(PROJECT)}

    def answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True
