"""Where a run's source is kept: small ones in the document, large ones as a blob that is written first."""

import msgspec

from runtape.domain.execution import SourceRef
from runtape.domain.source import Source
from runtape.ports.errors import Permanent
from runtape.ports.stores import BlobStore

INLINE_BYTES = 4096
"""A larger source would be written again with every change of its document."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Source).decode


class SourceLibrary:
    """Keeps sources and gives them back."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def keep(self, source: Source) -> SourceRef:
        """Return a reference to `source`; it can be loaded as soon as a document refers to it."""
        if source.size_bytes <= INLINE_BYTES:
            return SourceRef(inline=source)
        return SourceRef(blob_sha256=await self._blobs.put(_encode(source)))

    async def load(self, ref: SourceRef) -> Source:
        """Return the source.  Raises: Permanent, when its blob is gone."""
        if ref.inline is not None:
            return ref.inline
        data = await self._blobs.get(ref.blob_sha256) if ref.blob_sha256 else None
        if data is None:
            raise Permanent(f"the source blob {ref.blob_sha256} is missing")
        return _decode(data)
