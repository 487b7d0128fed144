"""Armed boxes in stock, and the keeper process that makes them.

Theory of operation.  The service execs the keeper and shares one socket with it.  Each armed box arrives there as four
descriptors; it waits in the pool until a run takes it, and the pool is filled up again a moment later, so that the
making of the next box does not compete with the program that has just begun.  An empty pool is filled at once.  A run
that finds it empty waits in line.

The lock.  `<data>/sandbox.lock` is locked before the keeper starts, and the keeper and every box keep the locked
descriptor open.  So it is free again only when all of them are dead, however they died, and whoever gets it may
begin: the programs of an earlier service are gone.

Keeper lost.  Its socket then reads end of file; its boxes die by their death signals.  Those in stock are dropped, the
runs are told, and a new keeper is started, again behind the lock.  When that fails time and again, runs that wait are
refused.
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from runtape.ports.errors import SandboxUnavailable, Transient

from .keeper import wire

log = structlog.get_logger(__name__)

_REFILL_DELAY_S: Final = 0.03
_LOCK_TIMEOUT_S: Final = 10.0
_LOCK_RETRY_S: Final = 0.01
_RESTART_DELAYS_S: Final = (0.0, 0.1, 0.5, 2.0, 5.0)
_BOOT: Final = Path(__file__).parent / "keeper" / "boot.py"
_KEEPER_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
