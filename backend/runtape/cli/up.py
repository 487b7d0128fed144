"""`runtape up`: serve until SIGTERM."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from runtape.cli.cluster import require_packages
from runtape.cli.errors import CliError
from runtape.cli.server import default_data


def up(
    *,
    host: str = "127.0.0.1",
    port: int = 8400,
    data: Path | None = None,
    ephemeral: Annotated[bool, Parameter(show=False, negative=())] = False,
) -> int:
    """Serve until SIGTERM; print `ready http://...` once the server accepts work.

    Args:
        host: The address to listen on; only this machine can reach the default.
        port: The port to listen on; 0 takes a free one.
        data: The folder that holds everything; also RUNTAPE_DATA, by default ~/.local/share/runtape.
        ephemeral: Exit when there is neither a run nor a client any more.
    """
    from runtape.runtime.settings import InvalidSettings, Settings

    try:
        settings = Settings.read(data=(data or default_data()).expanduser().absolute())
    except InvalidSettings as error:
        raise CliError(str(error)) from None
    if settings.profile == "cluster":
        require_packages()
        from runtape.runtime import cluster_process

        return cluster_process.serve(settings, host, port)
    from runtape.runtime.process import serve

    return serve(settings, host=host, port=port, ephemeral=ephemeral)
