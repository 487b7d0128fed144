"""The connection to MongoDB, how its failures are called, and how values are written."""

import asyncio
import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pymongo import AsyncMongoClient, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConnectionFailure, DuplicateKeyError, OperationFailure, PyMongoError

from runtape.ports.errors import Permanent, Transient, Unavailable

Row = dict[str, Any]
Rows = AsyncCollection[Row]
Store = AsyncDatabase[Row]

TIMEOUT_MS = 10_000
"""How long a call may take, the wait for a connection and the choice of a server included."""
CONNECTIONS = 64
REFUSED_WAIT_S = 10.0
"""The pause after a user was refused, which only a person ends."""

_REMARKS = re.compile(r" \(configured timeouts: [^)]*\)|, Timeout: .*", re.DOTALL)
_UNAUTHORISED = {13: "Unauthorized", 18: "AuthenticationFailed", 8000: "AtlasError"}


def connect(url: str, **options: Any) -> "AsyncMongoClient[Row]":
    """Return a client of the deployment at `url`, which connects when it is used; the caller closes it.

    What its URL says of reads and writes does not count; a write returns as `open_store` has it.  `options` are
    PyMongo's, for credentials and certificates.  Raises: Permanent, when it cannot be used.
    """
    try:
        return _client(url, options)
    except (PyMongoError, ValueError, TypeError) as error:
        # Its words may hold a piece of the URL, which has a password.
        kind = type(error).__name__
        raise Permanent(f"mongo.url cannot be used ({kind}); user and password are percent-encoded in it") from None


def _client(url: str, options: dict[str, Any]) -> "AsyncMongoClient[Row]":
    return AsyncMongoClient(
        url,
        appname="runtape",
        maxPoolSize=CONNECTIONS,
        w="majority",
        journal=True,
        readConcernLevel="majority",
        timeoutMS=TIMEOUT_MS,
        serverSelectionTimeoutMS=TIMEOUT_MS,
        **options,
    )


async def open_store(client: "AsyncMongoClient[Row]", database: str) -> Store:
    """Return the database, whose writes return once they are in the journal of all that must have them.

    A server that is no replica set's takes ``majority`` for a promise that replication keeps, and answers before its
    journal is written: killed then, it has forgotten what it acknowledged.  It is asked for its own journal instead.
    Raises: Unavailable, Transient.
    """
    store = client[database]
    with transient():
        hello = await client.admin.command("hello")
    return store.with_options(write_concern=concern_for(hello))


def concern_for(hello: Mapping[str, Any]) -> WriteConcern:
    """Return what to ask of a deployment that says `hello` so."""
    replicated = "setName" in hello or hello.get("msg") == "isdbgrid"
    return WriteConcern(w="majority" if replicated else 1, j=True)


@contextlib.contextmanager
def transient() -> Iterator[None]:
    """Let failures of MongoDB be known as such; who breaks a unique index is told so.

    The client swallows a cancellation that meets it while it sends, and goes on: it is told here.  Raises: Unavailable,
    Transient.
    """
    task = asyncio.current_task()
    cancellations = task.cancelling() if task is not None else 0
    try:
        yield
    except DuplicateKeyError:
        raise
    except PyMongoError as error:
        raise _transient(error) from error
    if task is not None and task.cancelling() > cancellations:
        raise asyncio.CancelledError


def _transient(error: PyMongoError) -> Transient:
    """Return what a failure is called; what a server says of a command is left out, which may hold documents."""
    if isinstance(error, OperationFailure) and error.code in _UNAUTHORISED:
        return Unavailable(f"MongoDB refuses the user: {_UNAUTHORISED[error.code]}", retry_after_s=REFUSED_WAIT_S)
    if isinstance(error, ConnectionFailure):
        return Unavailable(f"MongoDB does not answer: {type(error).__name__}: {_REMARKS.sub('', str(error))}")
    return Transient(f"MongoDB refuses: {type(error).__name__}")
