"""What can be run here."""

from collections.abc import Sequence

from runtape.domain.errors import RuntimeUnknown, VersionUnknown
from runtape.ports.pod_runtime import PodRuntime, Runtime


class RuntimeCatalogue:
    """The runtimes of the active pod runtime, looked up by language and version."""

    def __init__(self) -> None:
        self._by_lang: dict[str, list[Runtime]] = {}

    async def load(self, pods: PodRuntime) -> None:
        """Read the runtimes, in place of those that were read before."""
        found: dict[str, list[Runtime]] = {}
        for runtime in await pods.runtimes():
            found.setdefault(runtime.lang, []).append(runtime)
        self._by_lang = found

    def resolve(self, lang: str, version: str | None) -> Runtime:
        """Return the runtime; the newest version when none is named.  Raises: RuntimeUnknown; VersionUnknown."""
        known = self._by_lang.get(lang)
        if known is None:
            raise RuntimeUnknown(lang, sorted(self._by_lang))
        if version is None:
            return known[0]
        for runtime in known:
            if runtime.version == version:
                return runtime
        raise VersionUnknown(lang, version, [runtime.version for runtime in known])

    def versions(self, lang: str) -> Sequence[Runtime]:
        """Return the runtimes of a language that is known, newest version first."""
        return tuple(self._by_lang[lang])

    def all(self) -> dict[str, Sequence[Runtime]]:
        """Return the runtimes by language, newest version first."""
        return {lang: tuple(self._by_lang[lang]) for lang in sorted(self._by_lang)}
