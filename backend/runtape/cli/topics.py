"""`runtape topics`: Kafka's topics of the cluster profile, made and compared with what they are to be."""

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from runtape.cli.cluster import require_packages
from runtape.cli.errors import CliError
from runtape.cli.terminal import print_text

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from runtape.adapters.kafka.topics import Findings
    from runtape.runtime.parts import KafkaSettings

DRIFTED = 3

app = App(name="topics", help="Make and check Kafka's topics.")

AsJson = Annotated[bool, Parameter(name="--json", negative=(), show_default=False)]


@app.command
def init(*, as_json: AsJson = False) -> int:
    """Make the topics that are missing and tell what differs; exit code 3 says that something does.

    Partitions are added, never removed: messages of one execution would change their place.

    Args:
        as_json: Print a JSON object with made and drift.
    """
    require_packages()
    from runtape.adapters.kafka.topics import initialise

    settings, connection = _kafka()
    return _tell(_done(initialise(connection, settings.replication, settings.prefix)), as_json=as_json)


@app.command
def check(*, as_json: AsJson = False) -> int:
    """Tell how the topics differ from what they are to be, and change nothing; exit code 3 says that they do.

    Args:
        as_json: Print a JSON object with made and drift.
    """
    require_packages()
    from runtape.adapters.kafka import topics

    settings, connection = _kafka()
    return _tell(_done(topics.check(connection, settings.prefix)), as_json=as_json)


def _kafka() -> "tuple[KafkaSettings, dict[str, Any]]":
    from runtape.runtime.settings import InvalidSettings, Settings

    try:
        settings = Settings.read().kafka
    except InvalidSettings as error:
        raise CliError(str(error)) from None
    if settings.bootstrap is None:
        raise CliError("no Kafka is set; set RUNTAPE_KAFKA__BOOTSTRAP to host:port")
    return settings, settings.connection()


def _done(work: "Coroutine[Any, Any, Findings]") -> "Findings":
    from runtape.ports.errors import InfrastructureError

    try:
        return asyncio.run(work)
    except InfrastructureError as error:
        raise CliError(str(error)) from None


def _tell(findings: "Findings", *, as_json: bool) -> int:
    if as_json:
        print_text(json.dumps({"made": list(findings.made), "drift": [asdict(each) for each in findings.drift]}))
    else:
        for name in findings.made:
            print_text(f"made   {name}")
        for each in findings.drift:
            print_text(f"drift  {each.topic}: {each.finding}; {each.fix}")
        if not findings.made and not findings.drift:
            print_text("all topics are as they are to be")
    return DRIFTED if findings.drift else 0
