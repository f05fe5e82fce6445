r"""A component of torchx: `bundlerun run` once per node, on any of its schedulers.

torchx run --scheduler local_cwd examples/deploy/torchx_component.py:bundle -- \
    --devices cpu --slots 2 synthetic
torchx run --scheduler kubernetes examples/deploy/torchx_component.py:bundle \
    --image IMAGE --nodes 2 --gpu 4 -- --run-dir /runs/r101 /data/imagenet
"""

import shlex

import torchx.specs as specs

# No `from __future__ import annotations`: torchx reads the types of the parameters as they are.

PORT = 29400


def bundle(
    *words: str,
    image: str = "",
    nodes: int = 1,
    gpu: int = 0,
    cpu: int = 2,
    memory_mb: int = 8192,
    retries: int = 3,
) -> specs.AppDef:
    """One run of bundlerun, a replica per node.

    Args:
        words: options of `bundlerun run`, and DATA.
        image: what the nodes run; on local_cwd the current folder.
        nodes: how many.
        gpu: GPUs per node.
        cpu: cores per node.
        memory_mb: memory per node.
        retries: how often the scheduler starts a node again.
    """
    meeting: list[str] = []
    if nodes > 1:
        # The shell of the node reads the variable that the scheduler names; $$ is torchx's for $.
        host = f"$${{{specs.macros.rank0_env}:=localhost}}"
        meeting = [f"--nnodes={nodes}", f"--rdzv-id={specs.macros.app_id}"]
        meeting.append(f"--rdzv-endpoint={host}:{PORT}")
    command = " ".join(["bundlerun", "run", *meeting, *map(shlex.quote, words)])
    return specs.AppDef(
        name="bundlerun",
        roles=[
            specs.Role(
                name="node",
                image=image,
                entrypoint="bash",
                args=["-c", f"exec {command}"],
                num_replicas=nodes,
                resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memory_mb),
                max_retries=retries,
                port_map={"rendezvous": PORT},
            )
        ],
    )
