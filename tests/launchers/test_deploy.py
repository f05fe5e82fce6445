"""The examples for clusters against those who read them: `make test-deploy` installs these.

The Dockerfile was not built where this was written: there was no Docker to build it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.launchers.test_launchers import ROOT, check_trained, launched

DEPLOY = ROOT / "examples" / "deploy"
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.slow


def ran(*words: str | Path) -> str:
    program = shutil.which(words[0], path=BIN)
    if program is None:
        pytest.skip(f"{words[0]} is not installed: make test-deploy")
    done = subprocess.run(
        [program, *words[1:]], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def lost(given: object, read: object, place: str = "") -> Iterator[str]:
    """Where what was read is not what was given: a key that the schema does not have, for one."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            if key in read:
                yield from lost(value, read[key], f"{place}/{key}")
            else:
                yield f"{place}/{key}"
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for index, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from lost(one, other, f"{place}/{index}")
    elif given != read:
        yield place


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert ran("hadolint", DEPLOY / "Dockerfile") == ""


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kubeflow.yaml"])
def test_a_manifest_is_what_kubernetes_and_kubeflow_know(name: str) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="make test-deploy has it")
    kinds = {
        "Service": models.IoK8sApiCoreV1Service,
        "Job": models.IoK8sApiBatchV1Job,
        "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
        "TrainJob": models.TrainerV1alpha1TrainJob,
    }
    documents = list(yaml.safe_load_all((DEPLOY / name).read_text()))
    assert len(documents) == 2
    for document in documents:
        read = kinds[document["kind"]].from_dict(document)
        assert list(lost(document, json.loads(read.to_json()))) == []


def test_kubernetes_schema_holds_for_the_job() -> None:
    told = ran("kubernetes-validate", "--strict", DEPLOY / "kubernetes.yaml")
    assert told.count("passed") == 2


def test_skypilot_reads_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # it keeps a data base there
    sky = pytest.importorskip("sky", reason="make test-deploy has it")
    task = sky.Task.from_yaml(str(DEPLOY / "skypilot.yaml"))
    assert task.num_nodes == 2
    assert task.volumes == {"/runs": "bundlerun-runs"}


@pytest.mark.parametrize("nodes", [1, 2])
def test_torchx_starts_the_nodes_of_its_component(nodes: int, tmp_path: Path) -> None:
    component = f"{DEPLOY / 'torchx_component.py'}:bundle"
    words = ["torchx", "run", "--wait", "--scheduler=local_cwd", component, f"--nodes={nodes}"]
    here = [] if nodes == 1 else ["--local-addr=127.0.0.1"]
    done = launched([*words, "--", "--devices=cpu", "--slots=1", *here], tmp_path)
    assert done.returncode == 0
    check_trained(tmp_path, nodes)
