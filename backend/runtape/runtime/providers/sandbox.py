"""Pods as local sandboxes, the default."""

from collections.abc import AsyncIterator

from dishka import Provider, Scope, provide

from runtape.adapters.sandbox import LocalSandbox
from runtape.ports.pod_runtime import PodRuntime
from runtape.runtime.settings import Settings


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
        )
        await sandbox.open()
        yield sandbox
        await sandbox.close()
