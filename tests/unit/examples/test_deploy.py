"""The examples for clusters: what they start bundlerun takes, and their parts name each other.

`make test-deploy` holds them against the schemas of those who read them.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from bundlerun.launcher.cli import command_parser, our_words
from bundlerun.launcher.commands.run import read_configs
from bundlerun.launcher.launch_config import LaunchConfig

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "examples" / "deploy"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def launch_of(words: Sequence[str], environ: dict[str, str] | None = None) -> LaunchConfig:
    """The configuration that a command line `bundlerun run ...` gives."""
    assert words[:2] == ["bundlerun", "run"]
    args = command_parser("run").parse_args(our_words(words[1:]))
    return read_configs(args, environ or {})[1].value


def test_pods_of_the_job_find_each_other_by_the_names_that_the_service_gives() -> None:
    service, job = documents("kubernetes.yaml")
    pods = job["spec"]["template"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"].items() <= pods["metadata"]["labels"].items()
    assert pods["spec"]["subdomain"] == service["metadata"]["name"]
    (node,) = pods["spec"]["containers"]
    assert (
        node["name"] == job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"]
    )
    launch = launch_of(["bundlerun", *node["args"]])
    names = [f"{job['metadata']['name']}-{i}.{service['metadata']['name']}" for i in (0, 1)]
    assert [endpoint.host for endpoint in launch.endpoints] == names
    assert {endpoint.port for endpoint in launch.endpoints} == {service["spec"]["ports"][0]["port"]}
    assert launch.max_nodes == job["spec"]["parallelism"] == job["spec"]["completions"]
    assert job["spec"]["maxFailedIndexes"] == launch.max_nodes - launch.min_nodes
    waited_for = pods["spec"]["initContainers"][0]["args"][0]
    assert all(name.partition(".")[0] in waited_for for name in names)


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kubeflow.yaml"])
def test_each_mount_has_its_volume_and_shared_memory_is_large(name: str) -> None:
    spec = next(d for d in documents(name) if d["kind"] in ("Job", "TrainingRuntime"))["spec"]
    if "replicatedJobs" in spec["template"]["spec"]:
        spec = spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = spec["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert sorted(mounts.values()) == sorted(volumes)
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert pod["terminationGracePeriodSeconds"] >= 120


def test_the_trainjob_names_its_runtime_and_bundlerun_reads_what_the_trainer_sets() -> None:
    runtime, job = documents("kubeflow.yaml")
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert job["spec"]["runtimeRef"]["kind"] == runtime["kind"]
    replicated = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]
    assert "trainer.kubeflow.org/trainjob-ancestor-step" in replicated["metadata"]["labels"]
    trainer = job["spec"]["trainer"]
    pet = {
        "PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": "auto", "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "train-r101-node-0-0.train-r101", "PET_MASTER_PORT": "29400",
    }  # fmt: skip
    launch = launch_of([*trainer["command"], *trainer["args"]], pet)
    assert launch.max_nodes == trainer["numNodes"]
    assert [str(each) for each in launch.endpoints] == ["train-r101-node-0-0.train-r101:29400"]


def test_skypilot_s_command_is_one_of_bundlerun() -> None:
    (task,) = documents("skypilot.yaml")
    folded = task["run"].replace("\\\n", " ")
    line = next(line for line in folded.splitlines() if line.startswith("exec bundlerun"))
    given = {"$SKYPILOT_NUM_NODES": "2", "$first": "10.0.0.1", "$second": "10.0.0.2"}
    for name, value in given.items():
        line = line.replace(name, value)
    launch = launch_of(shlex.split(line)[1:])
    assert launch.max_nodes == task["num_nodes"]
    assert len(launch.endpoints) == 2
    assert str(launch.endpoints[0].port) == "29400"
    assert "/runs" in task["volumes"]


def test_the_image_copies_what_a_wheel_is_made_of() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    let_in = {
        line[1:]
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    links = {path.name for path in (ROOT / "bundlerun").iterdir() if path.is_symlink()}
    assert let_in >= {"bundlerun", "LICENSE", "README.md", "pyproject.toml", *links}
    assert all((ROOT / name).exists() for name in let_in)
    for source in re.findall(r"^COPY (?!--from)(\S+) ", text, re.MULTILINE):
        assert source == "." or source in let_in
    assert 'ENTRYPOINT ["bundlerun"]' in text


def test_the_component_starts_the_run_that_its_first_lines_show() -> None:
    """torchx itself is tried by `make test-launchers`."""
    tree = ast.parse((DEPLOY / "torchx_component.py").read_text())
    shown = (ast.get_docstring(tree) or "").replace("\\\n", " ")
    lines = [line for line in shown.splitlines() if "torchx run" in line]
    assert len(lines) == 2
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    known = {each.arg for each in function.args.kwonlyargs}
    for line in lines:
        ours, _, words = line.partition(" -- ")
        assert f"torchx_component.py:{function.name}" in ours
        options = re.findall(r"--(\w+)", ours.partition(function.name)[2])
        assert set(options) <= known
        launch_of(["bundlerun", "run", *shlex.split(words)])
