"""Why no client gets through to Kafka.

A client that begins tries every broker that it was given, tells its log why each of them failed, and raises no more
than that all have.  So they are asked once more here, for the reason.
"""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from runtape.ports.errors import Transient

TIMEOUT_MS = 5_000
REFUSED_WAIT_S = 10.0
"""The pause after a refusal, which only a person ends: tried every second, it might lock the user out."""

_REFUSED = (SaslAuthenticationFailed, UnsupportedSaslMechanismError, IllegalSaslStateError)


async def unreachable(connection: Mapping[str, Any], error: Exception) -> Transient:
    """Return what says why no client gets through; `error` is what the client has raised."""
    settings = {name: value for name, value in connection.items() if name != "bootstrap_servers"}
    told: list[str] = []
    refused = False
    for host, port, _ in collect_hosts(connection["bootstrap_servers"], randomize=False):
        try:
            broker = await create_conn(host, port, request_timeout_ms=TIMEOUT_MS, **settings)
        except (KafkaError, OSError, TimeoutError) as reason:
            finding, by_rule = _reason(reason, connection)
            told.append(f"{host}:{port} {finding}")
            refused = refused or by_rule
        else:
            broker.close()
    message = "; ".join(told) or str(error) or type(error).__name__
    return Transient(f"Kafka does not answer: {message}", retry_after_s=REFUSED_WAIT_S if refused else None)


def _reason(error: BaseException, connection: Mapping[str, Any]) -> tuple[str, bool]:
    """Return why a broker has not answered, and whether that is for good: a matter of credentials or certificates."""
    if isinstance(error, _REFUSED):
        user, mechanism = connection.get("sasl_plain_username"), connection.get("sasl_mechanism")
        return f"refuses the user {user} ({mechanism}): {error}", True
    cause = error.__cause__ or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"shows a certificate that is not trusted: {cause.verify_message}", True
    if isinstance(cause, ssl.SSLError):
        return f"and this process do not agree on TLS: {cause.reason or cause}", True
    if isinstance(cause, (asyncio.IncompleteReadError, ConnectionResetError)):
        return "closes the connection unanswered, as when one side speaks TLS and the other does not", False
    return f"is not reached: {str(error) or type(error).__name__}", False
