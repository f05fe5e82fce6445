"""Memory that is not needed any more goes back to the machine."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Collects what nobody refers to, and has the allocator return its free pages.

    glibc keeps what is below its last live block: of a model that was built whole, and of which
    one stage stays, up to all of the others. Other allocators return it by themselves.
    """
    gc.collect()
    trim()


def trim() -> None:
    """Has the allocator return its free pages to the machine; takes milliseconds."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)
