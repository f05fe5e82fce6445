"""What torch finds under the entry point group `torchrun.handlers`; loads nothing by itself.

torch looks up all entry points whenever its rendezvous is imported, which `handler` itself does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters


def get_handler() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """What makes the handler of `--rdzv-backend bundle`."""
    return _create


def _create(params: RendezvousParameters) -> RendezvousHandler:
    from bundlerun.launcher.rendezvous.handler import create_handler

    return create_handler(params)
