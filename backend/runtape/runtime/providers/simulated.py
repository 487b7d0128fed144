"""Simulated pods in place of real ones: for tests and for measuring the control plane alone.

No command of the product offers this profile: `runtape up` always isolates what it runs.
"""

from dishka import Provider, Scope, provide

from runtape.adapters.simulated import SimulatedPodRuntime
from runtape.ports.pod_runtime import PodRuntime


class SimulatedPodsProvider(Provider):
    """Pods that run no code."""

    scope = Scope.APP

    pods = provide(SimulatedPodRuntime, provides=PodRuntime)
