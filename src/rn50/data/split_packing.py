"""One split while it is packed: its shards, and what they were made from."""

import hashlib
from array import array
from typing import Any

import numpy as np
from jaxtyping import Int64

from rn50.data.conversion import Converted
from rn50.data.duplicates import Contents
from rn50.data.index import Records
from rn50.data.journal import Part, Tally, Workplace
from rn50.data.shard_writer import Shard, ShardWriter
from rn50.data.sources.base import SourceImage

SAMPLED = 256
"""One in so many of the images of finished shards is read again and compared on resuming."""


class SourceChangedError(Exception):
    """The source is not the one that the finished shards were made from."""


class SplitPacking:
    """Packs one split, from the first image that no finished shard holds.

    Args:
        place: Where the data set grows.
        split: ``"train"`` or ``"val"``.
        shard_bytes: As for ``ShardWriter``.
    """

    def __init__(self, place: Workplace, split: str, shard_bytes: int) -> None:
        self.skipped, self.converted = Tally(), Tally()
        self.resized = self.source_bytes = 0
        self._place = place
        self._split = split
        self._writer = ShardWriter(place.data, split, shard_bytes, finished=self._record)
        self._digests = bytearray()
        self._num_shards = 0
        finished = place.finished(split)
        self.parts = [part for _, part in finished]
        """Of the shards that an earlier run has finished."""
        for shard, part in finished:
            self._writer.restore(shard)
            self._add(part)
        self._since = _Stretch(self.parts[-1] if self.parts else Part())

    @property
    def num_finished(self) -> int:
        """Return the number of images that need not be read again."""
        return self.parts[-1].seen if self.parts else 0

    @property
    def num_left_out(self) -> int:
        """Return the number of images that were not packed so far."""
        counts = (self.skipped.counts, self._since.skipped.counts)
        return sum(sum(count.values()) for count in counts)

    def left_out(self, reason: str) -> bool:
        """Return whether finished shards left out an image for this reason."""
        return reason in self.skipped.counts

    def take(self, image: SourceImage, converted: Converted, key: str, label: int) -> None:
        """Write an image."""
        jpeg = converted.jpeg
        # This may end a shard, whose stretch ends before this image.
        self._writer.add(key, jpeg.data, label, (jpeg.width, jpeg.height), converted.digest)
        self._since.add(image, converted)

    def leave_out(self, image: SourceImage, reason: str, text: str) -> None:
        """Note an image that is not written."""
        self._since.leave_out(image, reason, text)

    def close(self) -> tuple[dict[str, Any], Records]:
        """Write what is left; return the split's entry of the manifest and its index."""
        entry = self._writer.close()
        self._add(self._since.part())
        return entry

    def abort(self) -> None:
        """Remove the shard that is not finished."""
        self._writer.abort()

    def contents(self) -> Contents:
        """Return what is packed, for the search for duplicates."""
        digests = np.frombuffer(self._digests, np.uint64)
        return Contents(digests, self._writer.rows["label"].astype(np.uint32), self._writer.key)

    def counts(self, num_classes: int) -> Int64[np.ndarray, " classes"]:
        """Return the number of images of each class."""
        return np.bincount(self._writer.rows["label"], minlength=num_classes).astype(np.int64)

    def _record(self, shard: Shard) -> None:
        part = self._since.part()
        self._place.record(self._split, len(self.parts) + self._num_shards, shard, part)
        self._num_shards += 1
        self._add(part)
        self._since = _Stretch(part)

    def _add(self, part: Part) -> None:
        self._digests += part.digests
        self.skipped.merge(part.skipped)
        self.converted.merge(part.converted)
        self.resized += part.resized
        self.source_bytes += part.source_bytes


class _Stretch:
    """The images since the end of ``before``, as they are taken one by one."""

    def __init__(self, before: Part) -> None:
        self._part = Part(seen=before.seen)
        self._listing = _Listing(before.listing)
        self._digests = array("Q")
        self.skipped, self._converted = Tally(), Tally()

    def add(self, image: SourceImage, converted: Converted) -> None:
        part, jpeg = self._part, converted.jpeg
        if not self._digests or part.seen % SAMPLED == 0:
            part.samples.append((part.seen, converted.source_digest))
        self._see(image)
        self._digests.append(converted.source_digest)
        part.source_bytes += converted.source_bytes
        part.resized += jpeg.resized
        if jpeg.converted is not None:
            self._converted.add(jpeg.converted, image.path)

    def leave_out(self, image: SourceImage, reason: str, text: str) -> None:
        self._see(image)
        self.skipped.add(reason, text)

    def part(self) -> Part:
        """Return the stretch up to here."""
        self._part.listing = self._listing.digest()
        self._part.digests = self._digests.tobytes()
        self._part.skipped = self.skipped.summary()
        self._part.converted = self._converted.summary()
        return self._part

    def _see(self, image: SourceImage) -> None:
        self._part.seen += 1
        self._listing.add(image)


class _Listing:
    """Hash of the classes and paths of images, continued from shard to shard."""

    def __init__(self, before: str = "") -> None:
        self._hash = hashlib.blake2b(before.encode(), digest_size=16)

    def add(self, image: SourceImage) -> None:
        self._hash.update(f"{image.class_id}\0{image.path}\n".encode(errors="surrogateescape"))

    def digest(self) -> str:
        return self._hash.hexdigest()


class Finished:
    """Tells the images of finished shards from the others, and that they are still the same.

    Args:
        parts: What the finished shards of a split were made from.
    """

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts
        self._seen = 0
        self._shard = 0
        self._listing = _Listing()
        self._samples = dict(sample for part in parts for sample in part.samples)

    def holds(self, image: SourceImage) -> tuple[bool, int | None]:
        """Return whether a finished shard holds the split's next image, and the hash to compare.

        The hash is that of the image's file; None for most images, which need not be read.

        Raises:
            SourceChangedError: The images up to here are not those of the finished shards.
        """
        if self._shard == len(self._parts):
            return False, None
        self._listing.add(image)
        expected = self._samples.get(self._seen)
        self._seen += 1
        part = self._parts[self._shard]
        if self._seen == part.seen:
            if self._listing.digest() != part.listing:
                raise SourceChangedError
            self._listing = _Listing(part.listing)
            self._shard += 1
        return True, expected

    def ended(self) -> None:
        """Say that the source has no more images.

        Raises:
            SourceChangedError: It had more when the shards were made.
        """
        if self._shard < len(self._parts):
            raise SourceChangedError
