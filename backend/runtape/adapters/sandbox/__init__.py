"""The local sandbox: `PodRuntime` by Linux namespaces, seccomp and cgroups, without a server, a daemon or root.

Begin with `local.py` (who talks to whom, and who dies when); then `keeper/`, which builds the walls and knows nothing
of the service, and `pod.py`, which follows one run.
"""

from .host import HostCheck, State, inspect_host
from .local import LocalSandbox
from .resolver import PackageOptions, uv_binary

__all__ = ["HostCheck", "LocalSandbox", "PackageOptions", "State", "inspect_host", "uv_binary"]
