"""Password hashing with Argon2id, off the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import argon2
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from runtape.ports.errors import Permanent

T = TypeVar("T")

MEMORY_KIB = 47_104
PASSES = 1
LANES = 1
"""The first of the equivalent settings in the OWASP Password Storage Cheat Sheet: 46 MiB, t=1, p=1."""

CONCURRENT = 2
"""Hashes at a time: each takes `MEMORY_KIB` and a core."""


class Argon2Hasher:
    """`PasswordHasher`; `close` ends its threads."""

    def __init__(self, *, memory_kib: int = MEMORY_KIB, passes: int = PASSES, lanes: int = LANES) -> None:
        self._argon2 = argon2.PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=lanes)
        # A hash of nothing under the present parameters: verifying against it costs what a real one costs.
        self._nobody = f"$argon2id$v=19$m={memory_kib},t={passes},p={lanes}${'A' * 22}${'A' * 43}"
        # An executor and no semaphore around `to_thread`: a cancelled caller leaves its hash running, and it counts.
        self._threads = ThreadPoolExecutor(CONCURRENT, thread_name_prefix="password")

    async def hash(self, password: str) -> str:
        return await self._run(self._hash, password)

    async def verify(self, password: str, password_hash: str | None) -> bool:
        matches = await self._run(self._verify, password, password_hash or self._nobody)
        return matches and password_hash is not None

    def outdated(self, password_hash: str) -> bool:
        try:
            return self._argon2.check_needs_rehash(password_hash)
        except InvalidHashError:
            return True

    def close(self) -> None:
        """End the threads once they are idle; idempotent."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[..., T], *args: str) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def _hash(self, password: str) -> str:
        return self._argon2.hash(password.encode(errors="surrogatepass"))

    def _verify(self, password: str, password_hash: str) -> bool:
        try:
            return self._argon2.verify(password_hash, password.encode(errors="surrogatepass"))
        except VerifyMismatchError:
            return False
        except (VerificationError, InvalidHashError):
            raise Permanent("a stored password hash is damaged") from None
