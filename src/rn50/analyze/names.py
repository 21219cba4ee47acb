"""What classes are called where people read of them."""

from collections import Counter
from collections.abc import Sequence


def shown_names(class_ids: Sequence[str], class_names: Sequence[str]) -> tuple[str, ...]:
    """Return a short name of each class, no two the same.

    Of several words for one class (``goldfish, Carassius auratus``) the first is taken. Where two
    classes share it, as ImageNet's two cranes do, the id is added.

    Args:
        class_ids: WordNet ids or folder names, no two the same.
        class_names: The words of each.
    """
    short = [
        name.partition(",")[0].strip() or id_
        for id_, name in zip(class_ids, class_names, strict=True)
    ]
    times = Counter(short)
    return tuple(
        name if times[name] == 1 else f"{name} ({id_})"
        for id_, name in zip(class_ids, short, strict=True)
    )
