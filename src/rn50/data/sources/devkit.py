"""The development kit of ILSVRC2012: what its class numbers mean, and the labels of the val images.

Its numbers, the ILSVRC2012_IDs, run from 1 to 1,000 in an order of their own. They are not the
class indices of any model, which are the ranks of the sorted WordNet ids.
"""

import io
import re
from collections import Counter
from dataclasses import dataclass

from rn50.data.sources.base import BadImageError
from rn50.data.sources.container import Container, Listing
from rn50.errors import DataError

META = "data/meta.mat"
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Devkit:
    """The two files of it that matter."""

    where: str
    wnid_of: dict[int, str]
    """ILSVRC2012_ID -> WordNet id, for the classes that images are labelled with."""
    names: dict[str, str]
    train_counts: dict[str, int]
    """Training images by WordNet id."""
    truth: tuple[int, ...]
    """The ILSVRC2012_ID of each validation image, in the order of their numbers."""

    @property
    def val_counts(self) -> dict[str, int]:
        """Return the validation images by WordNet id."""
        counts = Counter(self.wnid_of[id_] for id_ in self.truth)
        return {wnid: counts[wnid] for wnid in sorted(self.wnid_of.values())}

    def label(self, name: str) -> str:
        """Return the WordNet id of the validation image called ``name``.

        Raises:
            DataError: There is no such image.
        """
        match = VAL_IMAGE.fullmatch(name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(self.truth):
            raise DataError(
                f"{name} has no label: {self.where} knows ILSVRC2012_val_00000001.JPEG to "
                f"ILSVRC2012_val_{len(self.truth):08}.JPEG; remove it, or download the development "
                "kit again"
            )
        return self.wnid_of[self.truth[number - 1]]


def top(listing: Listing) -> str | None:
    """Return the folder that holds the kit's ``data``, ``""`` or with a ``/``; None if none."""
    for path in listing.files:
        if path.endswith(META) and path.removesuffix(META).count("/") <= 1:
            return path.removesuffix(META)
    return None


def read(container: Container, listing: Listing) -> Devkit:
    """Read the kit from its folder or its archive, compressed or not.

    Raises:
        DataError: It is damaged, or scipy, which reads its MATLAB file, is not installed.
    """
    found = top(listing)
    texts = {}
    if found is not None:
        wanted = [found + name for name in (META, TRUTH) if found + name in listing.files]
        try:
            texts = {member.path: member.read() for member in container.members(wanted)}
        except BadImageError as error:
            raise _damaged(container, str(error)) from error
    if found is None or len(texts) < 2:
        raise _damaged(container, f"it lacks {META} or {TRUTH}")
    wnid_of, names, counts = _classes(container, texts[found + META])
    truth = texts[found + TRUTH].decode("ascii", "replace").split()
    if bad := next(
        (line for line in truth if not line.isdigit() or int(line) not in wnid_of), None
    ):
        raise _damaged(container, f"{TRUTH} has {bad[:20]!r}, which no class has as its number")
    return Devkit(str(container.path), wnid_of, names, counts, tuple(map(int, truth)))


def _classes(
    container: Container, mat: bytes
) -> tuple[dict[int, str], dict[str, str], dict[str, int]]:
    """Return wnids by number, names and numbers of training images by wnid."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(
            f"{container.path} holds a MATLAB file, which scipy reads, and that is not installed; "
            "the labels of the validation images need it; run: pip install 'rn50[devkit]'"
        ) from error
    wnid_of, names, counts = {}, {}, {}
    try:
        synsets = loadmat(io.BytesIO(mat), struct_as_record=False, squeeze_me=False)["synsets"]
        for (synset,) in synsets.reshape(-1, 1):
            if int(synset.num_children.item()) == 0:  # others are groups of classes
                wnid = str(synset.WNID.item())
                wnid_of[int(synset.ILSVRC2012_ID.item())] = wnid
                names[wnid] = str(synset.words.item())
                counts[wnid] = int(synset.num_train_images.item())
    except Exception as error:  # scipy raises whatever the bytes lead it to
        raise _damaged(container, f"{META} cannot be read: {error}") from error
    if not wnid_of or len(set(wnid_of.values())) != len(wnid_of):
        raise _damaged(container, f"{META} has no classes, or one of them twice")
    return wnid_of, names, counts


def _damaged(container: Container, reason: str) -> DataError:
    return DataError(
        f"the development kit {container.path} is damaged: {reason}; "
        "ILSVRC2012_devkit_t12.tar.gz is needed as published; download it again"
    )
