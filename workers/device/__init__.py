"""The device of a rank (I17): what is asked of an accelerator goes through here, from every room.

`accelerator` finds it, and gives streams, marks in them, random numbers and figures; `host_memory`
gives memory of the CPU that it copies from and to by itself; `shared_memory` lets another process
of the node reach its memory and wait for its marks; `numbers` brings a few numbers there and back;
`traits` says which ones it computes with, and `switches` sets what torch has for speed and for the
same bits. `visible` hides the GPUs of other ranks, `start` starts the own one in a thread, and
`timers` measures parts of a stream. All ask torch: `torch.accelerator` for what there is, and for
the rest the module of its kind: `torch.cuda` (CUDA and ROCm), `torch.xpu`, or one that was
registered. Only memory between processes is asked of the driver.

Whatever torch takes as an accelerator will do, also one that is registered under a name of its own,
such as a stand-in of tests: its module needs what `interface.DeviceModule` lists, before
`accelerator.chosen_device` is called. Nobody outside asks for a kind: all that is not the CPU has
this. Only CUDA and ROCm have NCCL (`accelerator.has_nccl`). A kind may leave out figures of its
memory (`interface.HasMemory`), pinned memory, a runtime that maps memory of the CPU
(`interface.HasRuntime`), and memory between processes (`interface.SharesMemory`).
"""
