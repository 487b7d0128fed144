"""Programs that look for a way to anybody else: other machines, the host's services, other boxes."""

from runtape.prove.case import Case, Layer, Outside

_CONNECT = """
import socket, sys
from inside import connect

for text in sys.argv[1:]:
    host, _, port = text.rpartition(" ")
    connect((host, int(port)), socket.AF_INET6 if ":" in host else socket.AF_INET)
"""
_ACCEPTING = """
import sys
from inside import accepting, leak

for address in accepting(sys.argv[1:]):
    leak("%s accepts connections" % address)
"""
_SERVES = """
import os, socket
import inside

tcp = socket.create_server(("0.0.0.0", 45455))
if os.fork() == 0:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("0.0.0.0", 45456))
    while True:
        data, sender = udp.recvfrom(4096)
        udp.sendto(data, sender)
print("up")
while True:
    tcp.accept()[0].close()
"""
_LOOKS_FOR_THE_API = """
import os, sys
from inside import accepting, attempt, guarded, leak, status_of, tried

for path in sys.argv[1:]:
    if path[0] == "/":
        attempt(path + " is there", lambda: os.stat(path))
for name in os.environ:
    tried()
    if name.startswith("KUBERNETES"):
        leak("%s is in the environment" % name)
for address in accepting([text for text in sys.argv[1:] if text[0] != "/"]):
    status = status_of(address, "/api/v1/namespaces", True)
    if status == 200:
        leak("the API at %s answers" % address)
    else:
        guarded("the API at %s can be reached, and refuses (%s)" % (address, status))
"""
_REACHES = """
import sys
from inside import accepting, answer_of, leak

for address in accepting(sys.argv[1:]):
    leak("%s accepts connections" % address)
for address in sys.argv[1:]:
    if answer_of(address, b"datagram"):
        leak("%s answers datagrams" % address)
"""
_ASKS_FOR_NAMES = """
import os, re, socket, sys, threading
from inside import answer_of, leak, tried

QUESTION = b"\\x12\\x34\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\0\\7example\\3com\\0\\0\\x01\\0\\x01"

servers = [text for text in sys.argv[1:] if " " in text]
if "itself" in sys.argv:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    servers.append("127.0.0.1 %d" % server.getsockname()[1])
    threading.Thread(target=lambda: server.sendto(b"answer", server.recvfrom(512)[1]), daemon=True).start()
else:
    servers += [found + " 53" for found in re.findall(r"(?m)^nameserver\\s+(\\S+)", open("/etc/resolv.conf").read())]
for server in servers:
    if answer_of(server, QUESTION):
        leak("%s answers" % server)
if "resolve" in sys.argv:
    tried()
    try:
        leak("a name was resolved to %s" % socket.getaddrinfo("example.com", 80)[0][4][0])
    except OSError:
        pass
"""
_RAW = """
import socket, sys
from inside import attempt, send

for text in sys.argv[1:]:
    if text == "raw":
        for family, protocol in ((socket.AF_INET, 1), (socket.AF_INET, 255), (socket.AF_INET6, 58)):
            attempt("a raw socket", lambda: socket.socket(family, socket.SOCK_RAW, protocol).close())
        attempt("a ping socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1).close())
    else:
        host, _, port = text.rpartition(" ")
        send((host, int(port)))
"""
_REACHES_SERVERS = """
import socket, sys
from inside import accepting, leak, tried

for address in accepting([text for text in sys.argv[1].split(",") if " " in text]):
    leak("%s accepts connections" % address)
for name in ("kafka", "mongo", "redis", "host.docker.internal", "registry") if sys.argv[2:] else ():
    tried()
    try:
        leak("%s is %s" % (name, socket.getaddrinfo(name, 80)[0][4]))
    except OSError:
        pass
"""

CASES = (
    Case(
        id="A46",
        title="metadata of the cloud",
        tries="asks for credentials at the metadata addresses of clouds, in both IP versions and link-local",
        holds="there is no route to them",
        layer=Layer.NETWORK,
        args=(
            "169.254.169.254 80",
            "169.254.170.2 80",
            "100.100.100.200 80",
            "168.63.129.16 80",
            "fd00:ec2::254 80",
            "fe80::1 80",
        ),
        control=Outside(("127.0.0.1 {tcp_port}",)),
        in_pods={"layer": Layer.POLICY, "holds": "nothing answers there", "program": _ACCEPTING},
        program=_CONNECT,
    ),
    Case(
        id="A47",
        title="the cluster's API",
        tries="looks for a service account token and the cluster's addresses, and connects to its API",
        holds="there is neither token, address nor route",
        layer=Layer.NETWORK,
        args=("/var/run/secrets/kubernetes.io/serviceaccount/token", "/run/secrets", "/etc/kubernetes", "/root/.kube"),
        control=Outside(("{outside_file}",), env={"KUBERNETES_SERVICE_HOST": "10.96.0.1"}),
        in_pods={
            "layer": Layer.CREDENTIALS,
            "holds": "there is neither token nor address, and the API answers nothing to who has none",
            "args": ("/var/run/secrets", "/run/secrets", "/etc/kubernetes", "/root/.kube", "{service}", "{server}"),
            "fix": Layer.POLICY.fix,
            "program": _LOOKS_FOR_THE_API,
        },
        program="""
import os, sys
from inside import attempt, connect, leak, tried

for path in sys.argv[1:]:
    attempt(path + " is there", lambda: os.stat(path))
for name in os.environ:
    tried()
    if name.startswith("KUBERNETES"):
        leak("%s is in the environment" % name)
for host in ("10.96.0.1", "10.43.0.1", "172.20.0.1") if len(sys.argv) > 2 else ():
    connect((host, 443))
""",
    ),
    Case(
        id="A48",
        title="services of the platform",
        tries="connects to a server that does listen on this host, and to brokers and stores by IP and by name",
        holds="127.0.0.1 is the box's own, and no name can be resolved",
        layer=Layer.NETWORK,
        args=("{tcp_port}", "9092", "27017", "6379", "8400", "8080", "5000", "5432"),
        control=Outside(("{tcp_port}",)),
        in_pods={
            "layer": Layer.POLICY,
            "tries": "connects to the brokers and stores that this service's settings name, to its own loopback, and "
            "resolves names",
            "holds": "127.0.0.1 is the pod's own, and neither can servers be reached nor names be resolved",
            "args": ("127.0.0.1 {tcp_port},{platform}", "names"),
            "control": Outside(("127.0.0.1 {tcp_port},{platform}",)),
            "program": _REACHES_SERVERS,
        },
        program="""
import socket, sys
from inside import connect, leak, tried

for port in sys.argv[1:]:
    connect(("127.0.0.1", int(port)), refusable=True)
    connect(("::1", int(port)), socket.AF_INET6, refusable=True)
for name in ("kafka", "mongo", "redis", "host.docker.internal", "registry") if len(sys.argv) > 2 else ():
    tried()
    try:
        leak("%s is %s" % (name, socket.getaddrinfo(name, 80)[0][4]))
    except OSError:
        pass
""",
    ),
    Case(
        id="A49",
        title="other boxes and this machine's addresses",
        tries="connects to a server in another box that runs now, and to this machine's own addresses",
        holds="each box has a network of its own",
        layer=Layer.NETWORK,
        companion="""
import socket
import inside

tcp = socket.create_server(("0.0.0.0", 45455))
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\\0another-box")
abstract.listen()
print("up")
while True:
    tcp.accept()[0].close()
""",
        companion_stays=True,
        args=("127.0.0.1 45455", "{host_address} 45455", "{host_address} {tcp_port}", "@another-box"),
        control=Outside(("@{abstract}",)),
        in_pods={
            "layer": Layer.POLICY,
            "tries": "connects to a server in another pod that runs now, and sends it datagrams",
            "holds": "pods cannot reach each other",
            "companion": _SERVES,
            "args": ("{companion_address} 45455", "{companion_address} 45456"),
            "control": Outside(("127.0.0.1 {tcp_port}",)),
            "program": _REACHES,
        },
        program="""
import socket, sys
from inside import connect

for text in sys.argv[1:]:
    if text[0] == "@":
        connect("\\0" + text[1:], socket.AF_UNIX, refusable=True)
    else:
        host, _, port = text.rpartition(" ")
        connect((host, int(port)), refusable=host.startswith("127."))
""",
    ),
    Case(
        id="A49b",
        title="watching others through shared files",
        tries="watches the folder of programs by inotify and dnotify while another box opens programs there",
        holds="a program does not learn what its neighbours and the host run",
        layer=Layer.SHARED_FILES,
        fix="take inotify_init, inotify_init1, inotify_add_watch and the F_NOTIFY of fcntl out of the allow-list: they "
        "report what other boxes and the host open in /usr",
        companion="""
import os, time
import inside

print("up")
while True:
    for path in ("/usr/bin/env", "/usr/bin/bash"):
        with open(path, "rb") as file:
            file.read(1)
    time.sleep(0.005)
""",
        companion_stays=True,
        args=("/usr/bin",),
        control=Outside(("{outside}", "itself")),
        program="""
import fcntl, os, select, signal, sys
from inside import leak, libc, tried

folder = sys.argv[1]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
opened = os.open(folder, os.O_RDONLY)
watch = libc.inotify_init1(0)
watched = watch >= 0 and libc.inotify_add_watch(watch, folder.encode(), 0x20) >= 0
tried()
try:
    fcntl.fcntl(opened, fcntl.F_NOTIFY, fcntl.DN_ACCESS)
except OSError:
    pass
tried()
if sys.argv[2:]:
    open(folder + "/file").read()
if signal.sigtimedwait([signal.SIGIO], 0.3):
    leak("dnotify tells that somebody read a file in %s" % folder)
if watched and select.select([watch], [], [], 0.3)[0]:
    name = os.read(watch, 4096)[16:].split(b"\\0")[0].decode()
    leak("inotify tells that somebody opened %s/%s" % (folder, name))
""",
    ),
    Case(
        id="A49c",
        title="locks on shared files",
        tries="sees and holds locks on files that all boxes and the host share",
        holds="a lock of one box does not show in another",
        layer=Layer.SHARED_FILES,
        fix="give each box inodes of its own, or take flock and F_GETLK out of the allow-list: a lock on a file in "
        "/usr shows in every box, and stops programs of the host that lock it",
        companion="""
import fcntl, time
import inside

file = open("/usr/bin/env", "rb")
for lock in (lambda: fcntl.flock(file, fcntl.LOCK_EX), lambda: fcntl.lockf(file, fcntl.LOCK_SH)):
    try:
        lock()
    except OSError:
        pass
print("up")
time.sleep(60)
""",
        companion_stays=True,
        args=("/usr/bin/env",),
        control=Outside(("{outside_file}", "itself")),
        program="""
import fcntl, struct, sys
from inside import leak, tried

held, other = open(sys.argv[1], "rb"), open(sys.argv[1], "rb")
if sys.argv[2:]:
    fcntl.flock(held, fcntl.LOCK_EX)
tried()
try:
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    leak("a lock of another box on %s is seen" % sys.argv[1])
except OSError:
    pass
tried()
try:
    asked = fcntl.fcntl(other, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    if struct.unpack_from("h", asked)[0] != fcntl.F_UNLCK:
        leak("a record lock of another box on %s is seen" % sys.argv[1])
except OSError:
    pass
""",
    ),
    Case(
        id="A50",
        title="tunnel through DNS",
        tries="resolves a name, and sends datagrams to public and to this host's name servers",
        holds="no name is resolved and no datagram goes out",
        layer=Layer.NETWORK,
        args=("1.1.1.1 53", "8.8.8.8 53", "{nameserver} 53", "resolve"),
        control=Outside(("127.0.0.1 {udp_port}",)),
        in_pods={
            "layer": Layer.POLICY,
            "holds": "no name is resolved and no name server answers",
            "args": ("1.1.1.1 53", "8.8.8.8 53", "resolve"),
            "control": Outside(("itself",)),
            "program": _ASKS_FOR_NAMES,
        },
        program="""
import socket, sys
from inside import leak, send, tried

for text in sys.argv[1:]:
    if text == "resolve":
        tried()
        try:
            leak("a name was resolved to %s" % socket.getaddrinfo("example.com", 80)[0][4][0])
        except OSError:
            pass
    else:
        host, _, port = text.rpartition(" ")
        send((host, int(port)), socket.AF_INET6 if ":" in host else socket.AF_INET)
""",
    ),
    Case(
        id="A52",
        title="raw, ICMP and UDP",
        tries="opens raw and ping sockets, and sends datagrams, broadcasts and multicasts",
        holds="no such socket is granted and nothing is sent",
        layer=Layer.NETWORK,
        kernel="a raw socket is refused by the kernel's own check for CAP_NET_RAW, behind calls that are allowed",
        args=("192.0.2.1 9", "255.255.255.255 9", "224.0.0.1 9", "2001:db8::1 9"),
        control=Outside(("127.0.0.1 {udp_port}",)),
        in_pods={
            "tries": "opens raw and ping sockets",
            "holds": "no such socket is granted",
            "layer": Layer.SECCOMP,
            "args": ("raw",),
            "kernel": "",
            "program": _RAW,
        },
        program="""
import socket, sys
from inside import attempt, send

for text in sys.argv[1:]:
    host, _, port = text.rpartition(" ")
    send((host, int(port)), socket.AF_INET6 if ":" in host else socket.AF_INET)
if len(sys.argv) > 2:
    for family, protocol in ((socket.AF_INET, 1), (socket.AF_INET, 255), (socket.AF_INET6, 58)):
        attempt("a raw socket", lambda: socket.socket(family, socket.SOCK_RAW, protocol).close())
    attempt("a ping socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1).close())
""",
    ),
    Case(
        id="A53",
        title="the first moment",
        tries="connects in its very first statement, before any policy that comes late could be in force",
        holds="the box was closed before the code arrived",
        layer=Layer.NETWORK,
        times=5,
        args=("{host_address} {tcp_port}",),
        control=Outside(("127.0.0.1 {tcp_port}",)),
        in_pods={
            "layer": Layer.POLICY,
            "holds": "the policy was in force before the code arrived",
            "times": 3,
            "companion": _SERVES,
            "companion_stays": True,
            "args": ("{companion_address} 45455",),
        },
        program="""
import _socket, sys
host, _, port = sys.argv[1].rpartition(" ")
first = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
first.settimeout(0.5)
try:
    first.connect((host, int(port)))
    told = "connected"
except OSError as error:
    told = "" if error.errno in (101, 99, 1, 13) else str(error)
from inside import leak, tried
tried()
if told:
    leak("%s: %s" % (sys.argv[1], told))
""",
    ),
)
