"""Where the files that a program leaves are kept: each as a blob, written before the document that names it."""

from runtape.application.retrying import persistently
from runtape.domain.artifact import Artifact, Artifacts
from runtape.ports.errors import Permanent
from runtape.ports.pod_runtime import PodArtifact, PodEnded, PodRuntime
from runtape.ports.stores import BlobStore

PUT_TRIES = 20


class ArtifactLibrary:
    """Keeps artifacts and gives them back."""

    def __init__(self, *, pods: PodRuntime, blobs: BlobStore) -> None:
        self._pods = pods
        self._blobs = blobs

    async def keep(self, ended: PodEnded) -> Artifacts:
        """Store what an ended pod has left and return it; it can be read as soon as a document names it.

        Raises: Transient, when the store fails for long.
        """
        kept = [await self._put(file) async for file in self._pods.artifacts(ended.key)]
        return Artifacts(kept=tuple(kept), left_out=ended.left_out)

    async def _put(self, file: PodArtifact) -> Artifact:
        sha256 = await persistently(lambda: self._blobs.put(file.content), "artifact.put", PUT_TRIES)
        return Artifact(path=file.path, size_bytes=len(file.content), sha256=sha256)

    async def content(self, artifact: Artifact) -> bytes:
        """Return all bytes of an artifact.  Raises: Permanent, when its blob is gone."""
        data = await self._blobs.get(artifact.sha256)
        if data is None:
            raise Permanent(f"the blob {artifact.sha256} of an artifact is missing")
        return data
