"""Pods as local sandboxes, the default."""

from collections.abc import AsyncIterator

from dishka import Provider, Scope, provide

from runtape.adapters.sandbox import LocalSandbox, PackageOptions
from runtape.ports.pod_runtime import PodRuntime
from runtape.runtime.settings import PackageSettings, Settings


class LocalSandboxProvider(Provider):
    """Pods as local sandboxes."""

    scope = Scope.APP

    @provide
    async def pods(self, settings: Settings) -> AsyncIterator[PodRuntime]:
        sandbox = LocalSandbox(
            settings.data,
            armed_boxes=settings.sandbox.armed,
            boxes_per_slot=settings.sandbox.boxes_per_slot,
            own_kernel=settings.sandbox.runtime_class == "gvisor",
            default_limits=settings.limits.limits(),
            packages=_packages(settings.packages),
        )
        await sandbox.open()
        yield sandbox
        await sandbox.close()


def _packages(settings: PackageSettings) -> PackageOptions | None:
    if not settings.enabled:
        return None
    return PackageOptions(
        index_url=settings.index_url.get_secret_value() if settings.index_url is not None else None,
        max_bytes=settings.max_bytes,
        cache_bytes=settings.cache_bytes,
        reuse_s=settings.reuse_s,
        resolve_timeout_s=settings.resolve_timeout_s,
    )
