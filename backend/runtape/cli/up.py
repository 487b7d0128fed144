"""`runtape up`: serve until SIGTERM."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

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
    from runtape.runtime.process import serve

    folder = (data or default_data()).expanduser().absolute()
    return serve(host=host, port=port, data_dir=folder, ephemeral=ephemeral)
