"""ImageNet-mini-1000 (ifigotin's, on Kaggle): all classes of ImageNet, few images of each.

It is not mini-ImageNet, which has 100 classes.
"""

from rn50.data.sources import published
from rn50.data.sources.stored import StoredImages
from rn50.data.sources.wnids import imagenet_wnids

_MOST_IMAGES = 100_000
"""More are a larger part of ImageNet, if not the whole: it has 38,668."""


def recognise(source: StoredImages) -> bool:
    """Name the set, if class folders are it, or ILSVRC2012 itself, and tell what is known of it."""
    if {class_.id for class_ in source.classes} != set(imagenet_wnids()):
        return False
    if source.count() > _MOST_IMAGES:
        source.expected = published.ilsvrc2012()
        return False
    source.kind = "ImageNet-mini-1000"
    source.expected = published.imagenet_mini()
    return True
