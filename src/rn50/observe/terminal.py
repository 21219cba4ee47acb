"""Whether what is written somewhere may move the cursor, as a bar that is drawn again does."""

import os
from typing import TextIO


def moves_cursor(stream: TextIO) -> bool:
    """Return whether a stream leads to a terminal that understands movements of the cursor.

    A notebook's ``!command`` runs in a pseudo-terminal, so that the stream says yes, but what is
    shown below the cell understands nothing of the kind. Kernels are told by the environment that
    they give to commands (seen with ipykernel 7), Kaggle's and Colab's by their own.
    """
    try:
        if not stream.isatty():
            return False
    except (AttributeError, ValueError):  # a stand-in for a stream, or one that was closed
        return False
    told = os.environ
    if told.get("TERM") == "dumb" or (told.get("TERM"), told.get("PAGER")) == (
        "xterm-color",
        "cat",
    ):
        return False
    notebooks = ("JPY_PARENT_PID", "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG")
    return not any(name in told for name in notebooks)
