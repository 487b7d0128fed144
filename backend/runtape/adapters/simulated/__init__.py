"""A pod runtime that runs no code: for measuring the control plane and for tests of everything above the port."""

from runtape.adapters.simulated.pod_runtime import SimulatedPodRuntime

__all__ = ["SimulatedPodRuntime"]
