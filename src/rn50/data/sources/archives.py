"""Folders, zip and tar files, plain or compressed, recognised by their content."""

import bz2
import gzip
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rn50.data.sources.container import Container, Folder, unreadable
from rn50.data.sources.tars import Tar
from rn50.data.sources.zips import Zip
from rn50.errors import DataError

_COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


def open_container(path: Path) -> Container:
    """Return the container at ``path``, recognised by its content.

    Raises:
        DataError: It does not exist, or is neither a folder nor a known archive.
    """
    if os.path.isdir(path):
        return Folder(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError as error:
        raise DataError(
            f"source {path} does not exist; it must be a folder or an archive of labelled images, "
            "or `demo`; check the path"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if start.startswith(b"PK"):
        return Zip(path)
    for magic, opener in _COMPRESSED.items():
        if start.startswith(magic):
            return Tar(path, opener)
    if start[257:262] == b"ustar" or tarfile.is_tarfile(path):
        return Tar(path)
    raise DataError(
        f"source {path} is not an archive; it must be a folder, a zip, or a tar, plain or "
        "compressed with gzip, bzip2 or xz; check the download"
    )
