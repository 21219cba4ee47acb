"""fast.ai's Imagenette and Imagewoof: ten classes of ImageNet each, as folders or a ``.tgz``.

Since December 2019 (version 2) their train and val are a new division of the images of ILSVRC's
train and val alike, by 70 to 30: nearly all validation images are training images of ImageNet.
"""

from rn50.data.sources import published
from rn50.data.sources.stored import Labelled, StoredImages
from rn50.data.sources.tars import Tar


def recognise(source: StoredImages) -> bool:
    """Name the set, if class folders are one of the two, and tell what is known of it."""
    ids = {class_.id for class_ in source.classes}
    if ids not in (set(published.IMAGENETTE), set(published.IMAGEWOOF)):
        return False
    version = "2" if source.notes else ""  # of version 1, val is a part of ILSVRC's
    source.kind = f"{'imagenette' if ids == set(published.IMAGENETTE) else 'imagewoof'}{version}"
    if source.kind == "imagenette2":
        source.expected = published.imagenette2()
    for part in source.parts:
        if isinstance(part, Labelled) and isinstance(part.container, Tar):
            part.container.hashed = True
    return True
