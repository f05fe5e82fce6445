import gc
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bundlerun.launcher.agent import elastic
from bundlerun.launcher.agent.elastic import load, set_environment
from bundlerun.launcher.agreement.agreed import PROSPECTS_VARIABLE, TERMS_VARIABLE
from bundlerun.launcher.agreement.claim import CLAIM_VARIABLE, Claim
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.hardware import Devices
from bundlerun.launcher.layout.prospects import Prospects
from bundlerun.launcher.meeting.network import as_typed
from bundlerun.launcher.plan import NodePlan
from bundlerun.launcher.ranks.board import BOARD_VARIABLE
from bundlerun.launcher.ranks.standby import Standbys
from bundlerun.launcher.run_folder.holder import Holder
from bundlerun.launcher.run_folder.outcome import Outcome, write_outcome
from bundlerun.launcher.run_folder.paths import RunPaths


def test_a_variable_that_lost_against_an_option_does_not_reach_the_workers() -> None:
    node = NodePlan(
        name="n",
        devices=Devices(kind="cpu", count=1),
        layouts=(),
        loaders=0,
        meeting=as_typed(LaunchConfig()),
        log_dir="",
        environment={"OMP_NUM_THREADS": "1"},
    )
    environ = {"BUNDLERUN_LR": "9", "BUNDLERUN_NODE_NAME": "n", "HOME": "/root"}
    set_environment(environ, node)
    assert environ == {"BUNDLERUN_NODE_NAME": "n", "HOME": "/root", "OMP_NUM_THREADS": "1"}


def test_the_garbage_collector_works_again_after_an_import_that_failed() -> None:
    with pytest.raises(ImportError):
        load("no_such_module")
    assert gc.isenabled()
    gc.unfreeze()


@pytest.mark.parametrize(
    ("said", "written", "code"), [(0, 75, 75), (0, 0, 0), (0, None, 0), (75, None, 75)]
)
def test_a_node_that_was_spare_ends_as_the_run_does(
    said: int, written: int | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if written is not None:
        end = Outcome(state="stopped", exit_code=written, reason="told to stop", step=3)
        write_outcome(RunPaths(tmp_path), end)

    def agent(*_: object) -> None:
        raise SystemExit(said)

    monkeypatch.setattr(elastic, "_start_agent", agent)
    train = SimpleNamespace(value=SimpleNamespace(run_dir=str(tmp_path)))
    plan: Any = SimpleNamespace(here=SimpleNamespace(name="n"), train=train)
    start: Any = None
    assert elastic._run(plan, start, print) == code


def test_standbys_are_kept_where_they_are_asked_for_and_this_python_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(BOARD_VARIABLE, "/proc/1/fd/3")
    monkeypatch.setenv("TORCH_MP_PARALLEL_START", "1")

    def kept(*, standby: bool) -> Standbys | None:
        launch = SimpleNamespace(value=LaunchConfig(standby=standby))
        here = SimpleNamespace(num_procs=3)
        plan: Any = SimpleNamespace(launch=launch, module="m", argv=["a"], here=here)
        return elastic._standbys(plan)

    assert kept(standby=False) is None
    wanted = Standbys(module="m", argv=["a"], num_ranks=3, board="/proc/1/fd/3")
    assert kept(standby=True) == wanted
    # The fork server knows ranks by the order in which they are asked for.
    assert os.environ["TORCH_MP_PARALLEL_START"] == "0"
    monkeypatch.setattr(elastic, "can_keep_standbys", lambda: False)
    with pytest.raises(NodeError, match="--standby is not there yet for Python 3"):
        kept(standby=True)


@pytest.mark.parametrize("is_new", [True, False])
def test_the_run_folder_is_claimed_before_torch_is_imported_and_freed_where_that_fails(
    is_new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a request to stop that comes meanwhile is left alone by the nodes that come later."""
    paths, seen = RunPaths(tmp_path / "run"), list[str]()
    if not is_new:
        paths.root.mkdir()

    def prepare(*_: object) -> bool:
        seen.extend(path.name for path in paths.claims.iterdir())
        raise NodeError("the port is taken")

    monkeypatch.setattr(elastic, "_prepare", prepare)
    for name in (BOARD_VARIABLE, TERMS_VARIABLE, CLAIM_VARIABLE, PROSPECTS_VARIABLE):
        monkeypatch.setenv(name, "")
    value = SimpleNamespace(value=TrainConfig(data="synthetic"))
    launch = SimpleNamespace(value=None)
    plan: Any = SimpleNamespace(
        train=value, launch=launch, here=None, terms={}, prospects=Prospects()
    )
    claim = Claim(paths, Holder.of_process("job", "a test"), print)
    with pytest.raises(NodeError):
        elastic.launch(plan, say=print, claim=claim)
    assert seen == ["000001.json"]
    assert paths.root.exists() == (not is_new)
    if not is_new:
        assert [path.name for path in paths.claims.iterdir()] == ["000001.over"]
        assert not paths.terms.exists()
