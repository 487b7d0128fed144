"""The packages that the profile ``cluster`` needs beside the others: the distribution's extra `cluster`.

Asked before anything of that profile is imported: an ImportError from its middle would say neither what the process
is nor what to do.
"""

from importlib.util import find_spec

PACKAGES = {
    "aiokafka": "aiokafka",
    "confluent_kafka": "confluent-kafka",
    "fastavro": "fastavro",
    "pymongo": "pymongo",
    "redis": "redis",
    "kubernetes_asyncio": "kubernetes-asyncio",
    "yaml": "pyyaml",
}
"""The packages by the module that each is imported as."""


class MissingPackages(Exception):
    """Packages of the profile are not installed; the message names each, and the fix."""


def require() -> None:
    """Return when all of them are installed; nothing is imported.  Raises: MissingPackages."""
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise MissingPackages(
            f"the profile cluster needs {', '.join(missing)}; install runtape[cluster], "
            "or in a checkout set RUNTAPE_PROFILE=cluster in the environment and use ./runtape"
        )
