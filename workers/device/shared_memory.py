"""Memory of a GPU, and marks, that another process of the node reaches (CUDA IPC).

    one process        memory_handle(tensor) -> text      shared_event, event_handle(event) -> text
    another process    memory_of(text) -> tensor          event_of(text)

CUDA opens what another process shares on the own GPU of the process that opens it, whatever the
other one calls the GPU where it lies: neither need see the other's (`visible`). Where the two GPUs
do not reach each other, or the system forbids it, opening is refused. The memory of torch's
expandable segments cannot be shared either.

A mark lives as long as the process that made it: nobody may be waiting for it when that ends.
"""

from __future__ import annotations

import ctypes
import functools
import json
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from bundlerun.workers.device.accelerator import current_stream, module_of
from bundlerun.workers.device.interface import Event, SharesMemory

_DRIVER = "libcuda.so.1"
_MAY_REACH_PEERS = 1
"""CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, the only flag there is."""
_HANDLE_BYTES = 64


class CannotShareError(RuntimeError):
    """Memory or marks of a GPU cannot be shared between two processes here."""


class _SharedEvent(Event, Protocol):
    def ipc_handle(self) -> bytes: ...


# --- marks


def shared_event(device: torch.device) -> Event:
    """A mark of this process that others can wait for.

    Raises:
        CannotShareError: this kind of device has none.
    """
    make: Any = module_of(device).Event
    try:
        made: Event = make(interprocess=True)
    except (TypeError, RuntimeError) as exc:
        raise CannotShareError(f"no marks between processes: {_first_line(exc)}") from exc
    return made


def event_handle(event: Event) -> str:
    """By which another process of this node finds a `shared_event`.

    Raises:
        CannotShareError: it cannot.
    """
    try:
        return cast(_SharedEvent, event).ipc_handle().hex()
    except RuntimeError as exc:
        raise CannotShareError(f"a mark cannot be shared: {_first_line(exc)}") from exc


def event_of(handle: str, device: torch.device) -> Event:
    """The mark of another process, for this process's GPU.

    Raises:
        CannotShareError: it cannot be opened.
    """
    make: Any = module_of(device).Event
    try:
        found: Event = make.from_ipc_handle(device, bytes.fromhex(handle))
    except (AttributeError, RuntimeError) as exc:
        raise CannotShareError(f"another process's mark: {_first_line(exc)}") from exc
    return found


def _first_line(exc: Exception) -> str:
    return str(exc).splitlines()[0] if str(exc) else type(exc).__name__


# --- memory


def memory_handle(memory: Tensor) -> str:
    """By which another process of this node finds memory of a GPU.

    Args:
        memory: flat, of torch; the process keeps it until the other one is done with it.

    Raises:
        CannotShareError: it cannot be shared.
    """
    module = module_of(memory.device)
    if isinstance(module, SharesMemory):
        return module.memory_handle(memory)
    _bind(memory.device)
    driver, address = _driver(), ctypes.c_uint64(memory.data_ptr())
    base, size, handle = ctypes.c_uint64(), ctypes.c_size_t(), _Handle()
    # torch hands out parts of what it has from the driver, which shares the whole of it.
    _check("memory", driver.cuMemGetAddressRange_v2(_ref(base), _ref(size), address))
    _check("sharing memory", driver.cuIpcGetMemHandle(_ref(handle), base))
    return json.dumps([bytes(handle.data).hex(), address.value - base.value])


def memory_of(handle: str, num_bytes: int, device: torch.device) -> Tensor:
    """Memory of another process as a tensor of this process's GPU, (num_bytes,), uint8.

    It stays open for as long as this process lives, whatever becomes of the tensor.

    Raises:
        CannotShareError: it cannot be opened.
    """
    module = module_of(device)
    if isinstance(module, SharesMemory):
        return module.memory_of(handle, num_bytes)
    data, offset = json.loads(handle)
    storage = torch._C._construct_storage_from_data_pointer(
        _opened(data, device) + offset, device, num_bytes
    )
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)


@functools.cache
def _opened(data: str, device: torch.device) -> int:
    """Where memory of another process begins here; opened once, as CUDA wants it."""
    _bind(device)
    found, handle = ctypes.c_uint64(), _Handle.from_buffer_copy(bytes.fromhex(data))
    code = _driver().cuIpcOpenMemHandle_v2(_ref(found), handle, _MAY_REACH_PEERS)
    _check("opening another process's memory", code)
    return found.value


class _Handle(ctypes.Structure):
    _fields_ = (("data", ctypes.c_ubyte * _HANDLE_BYTES),)


_ref = ctypes.byref


def _bind(device: torch.device) -> None:
    """Lets the driver's calls of this thread refer to torch's context, as torch's own calls do."""
    cast(Any, current_stream(device)).query()


@functools.cache
def _driver() -> Any:  # noqa: ANN401 (what ctypes gives)
    try:
        driver = ctypes.CDLL(_DRIVER)
        driver.cuIpcOpenMemHandle_v2.argtypes = (ctypes.c_void_p, _Handle, ctypes.c_uint)
    except (OSError, AttributeError) as exc:
        raise CannotShareError(f"this kind of GPU shares no memory: {exc}") from exc
    return driver


def _check(what: str, code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorName(code, _ref(text))
        name = text.value.decode() if text.value else "no name"
        raise CannotShareError(f"{what} is refused (code {code}, {name})")
