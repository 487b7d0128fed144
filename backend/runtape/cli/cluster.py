"""What the commands of the profile ``cluster`` have in common."""

from runtape.cli.errors import CliError


def require_packages() -> None:
    """Return when the profile's packages are installed.  Raises: CliError, naming those that are not."""
    from runtape.runtime import cluster_packages

    try:
        cluster_packages.require()
    except cluster_packages.MissingPackages as error:
        raise CliError(str(error)) from None
