"""An accelerator for tests on machines without one: tensors of another device, over CPU memory.

`install()` registers it with torch, for good, so only a process that is made for it calls that.
From then on `torch.accelerator` finds it, and `workers.device` uses it as it would use a GPU. What
it is given it does late and out of step on purpose, so that whoever forgets to wait sees it:

    queues         what streams have been given; nothing is done before somebody waits for it
    memory         memory of the device, and who has been let near it
    accesses       two streams at one piece of memory, with nothing between them: a fault
    kernels        torch's operations: the shape of a result at once, the work later, on the CPU
    autocast       products in the lower precision, losses in the higher one
    copies         between the device and the CPU; pinned memory
    module         what `torch.cuda` is for CUDA; streams and events
    between        memory and events that two processes share
    communicator   a group that refuses what NCCL refuses, over gloo
    count          how often a step waits for the device, and what it asks it to do; a command

Nothing in the package that ships knows of it.
"""
