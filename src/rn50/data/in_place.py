"""WebDataset tars that are used where they lie: DEST holds an index, and links instead of shards.

Each tar is named ``train-000000.tar`` and so on by a symbolic link to its absolute path, and the
manifest lists it with its size and hash as any shard. So whatever reads packed data reads this; a
copy that follows the links (``cp -rL``, ``aws s3 sync``) is a packed data set of its own; and the
manifest cannot name a file outside of its folder, whoever wrote it.
"""

import hashlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rn50.data.conversion import Converted
from rn50.data.index import Records
from rn50.data.journal import Workplace
from rn50.data.shard_writer import SHARD_BYTES
from rn50.data.sources import splits, webdataset
from rn50.data.sources.base import Layout, Source, SourceImage
from rn50.data.sources.detect import DEMO, open_source
from rn50.data.sources.tars import damage_told
from rn50.data.split_packing import SplitPacking
from rn50.errors import DataError, UsageError

UNUSABLE = "not a JPEG in gray or colour, as using tars in place needs"
_PIECE = 1 << 20


def open_tars(source: str, *, val_source: str | None = None, layout: Layout = "auto") -> Source:
    """Return the labelled images of a folder of WebDataset tars; see ``open_source``.

    Raises:
        DataError: The folder does not exist, or is damaged.
        UsageError: It is anything else.
    """
    path = Path(source)
    if not path.exists() and source != DEMO:
        return open_source(source)
    found = path.is_dir() and webdataset.find(path, splits.files_of(path))
    if not found or val_source or layout not in ("auto", "webdataset"):
        raise _unfit(f"{source} is none")
    return open_source(source, layout="webdataset")


class InPlacePacking(SplitPacking):
    """Refers to the images of one split where they lie; nothing of it outlives an interruption.

    Args:
        place: Where the data set grows.
        split: ``"train"`` or ``"val"``.
        skip_bad: Leave out what is not a JPEG in gray or colour, and list it.
    """

    def __init__(self, place: Workplace, split: str, *, skip_bad: bool) -> None:
        super().__init__(place, split, SHARD_BYTES)
        for left in place.data.glob(f"{split}-*.tar"):  # by a run that was killed
            left.unlink()
        self._skip_bad = skip_bad
        self._tars: list[Path] = []
        self._pool = ThreadPoolExecutor(1, "hash")
        self._stopped = threading.Event()
        self._hashed: Future[dict[str, Any]] | None = None

    def take(self, image: SourceImage, converted: Converted, key: str, label: int) -> None:
        """Note where an image lies.

        Raises:
            DataError: Training cannot read it as it is, and such are not to be left out.
            UsageError: The source is not one of plain tars, or no link can be made.
        """
        if image.place is None:
            raise _unfit(f"the image {image.path} lies in another form")
        if converted.jpeg.converted is not None:
            self._leave_out(image, converted.jpeg.converted)
            return
        if not self._tars or image.place.file != self._tars[-1]:
            self._end_tar()
            self._begin_tar(image.place.file)
        at = image.place.offset, image.place.size
        size = converted.jpeg.width, converted.jpeg.height
        self._writer.refer(key, at, label, size, converted.digest)
        self._since.add(image, converted)

    def close(self) -> tuple[dict[str, Any], Records]:
        """Write the index; return the split's entry of the manifest and the index."""
        self._end_tar()
        self._pool.shutdown()
        return super().close()

    def abort(self) -> None:
        """Stop reading."""
        self._stopped.set()
        self._pool.shutdown()
        super().abort()

    def _leave_out(self, image: SourceImage, kind: str) -> None:
        if not self._skip_bad:
            raise DataError(
                f"{image.path} is a {kind}; --in-place needs JPEGs in gray or colour, as training "
                "reads no others; prepare without --in-place, which converts such images, or leave "
                "them out with --skip-bad, which lists them in the manifest"
            )
        self.leave_out(image, UNUSABLE, f"{image.path} ({kind})")

    def _begin_tar(self, tar: Path) -> None:
        link = self._place.data / f"{self._split}-{len(self._tars):06d}.tar"
        try:
            # Only the folder is resolved: a link in the cache of the Hub tells more than its blob.
            link.symlink_to(tar.parent.resolve() / tar.name)
        except OSError as error:
            raise UsageError(
                f"cannot make the symbolic link {link}: {error.strerror}; --in-place makes one for "
                "each tar; choose a DEST on a disk that takes them, or leave --in-place out"
            ) from error
        self._tars.append(tar)
        self._hashed = self._pool.submit(self._entry, tar, link.name)

    def _end_tar(self) -> None:
        """List the tar whose images were taken last; while its hash lags behind, wait for it."""
        if self._hashed is not None:
            self._writer.include(self._hashed.result())
            self._hashed = None

    def _entry(self, tar: Path, name: str) -> dict[str, Any]:
        """Return what the manifest says of a tar; its images are being read, so it is cached."""
        state, size = hashlib.blake2b(digest_size=16), 0
        with damage_told(tar), tar.open("rb") as file:
            while not self._stopped.is_set() and (piece := file.read(_PIECE)):
                state.update(piece)
                size += len(piece)
        return {"file": name, "bytes": size, "blake2b": state.hexdigest()}


def _unfit(found: str) -> UsageError:
    return UsageError(
        f"--in-place takes one folder of WebDataset tars that are not compressed, such as "
        f"{webdataset.EXAMPLE}, and {found}; leave --in-place out, or give such a folder"
    )
