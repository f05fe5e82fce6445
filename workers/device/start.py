"""Starts the device in a thread, while the rank looks at its inputs and waits for the others.

main thread  | chosen |  options, data, the round's store  | take ---> its device
thread               [1] context, 0.3 to 1.5 s on a GPU   [2] libraries of matrices and images
"""

from __future__ import annotations

import os
import threading
from collections.abc import MutableMapping
from concurrent.futures import Future

import torch

from bundlerun.launcher.errors import NodeError
from bundlerun.workers.device import accelerator as door

_SIDE = 8
"""Of the matrix and the image that have the libraries loaded; any will do."""


class DeviceStart:
    """The start of a rank's device; on the CPU there is nothing to start, and no thread.

    Args:
        local_rank: whose device it is.
        environ: of this process.
    """

    def __init__(self, local_rank: int, environ: MutableMapping[str, str] = os.environ) -> None:
        # Here, before there is a thread: C code must not read the environment while it changes.
        self._device = door.chosen_device(local_rank, environ)
        self._started: Future[None] | None = None
        if door.is_gpu(self._device):
            self._started = Future()
            threading.Thread(target=self._run, name="device-start", daemon=True).start()

    def _run(self) -> None:
        assert self._started is not None
        try:
            door.enter(self._device)
            load_libraries(self._device)
        except Exception as exc:  # told where the device is wanted
            self._started.set_exception(exc)
        else:
            self._started.set_result(None)

    def take(self) -> torch.device:
        """The device, which the calls of this thread refer to from here on.

        Raises:
            NodeError: it cannot be started.
        """
        if self._started is None:
            return self._device
        try:
            self._started.result()
        except Exception as exc:
            first = (str(exc).strip() or type(exc).__name__).splitlines()[0]
            raise NodeError(
                f"{self._device} cannot be started: {first}; look at the driver (nvidia-smi), and "
                "at what else runs there"
            ) from exc
        door.enter(self._device)
        return self._device


def load_libraries(device: torch.device) -> None:
    """Has torch load what multiplies matrices and convolves images on `device`, and waits."""
    with torch.no_grad():
        image = torch.ones(1, 1, _SIDE, _SIDE, device=device)
        matrix = torch.nn.functional.conv2d(image, image[:, :, :3, :3])[0, 0]
        torch.mm(matrix, matrix)
    door.finish(device)
