import gc

import pytest

from launcher.elastic import load, set_environment
from launcher.hardware import Devices
from launcher.network import LOOPBACK, Meeting
from launcher.plan import NodePlan


def test_a_variable_that_lost_against_an_option_does_not_reach_the_workers() -> None:
    node = NodePlan(
        name="n",
        devices=Devices(kind="cpu", count=1),
        layouts=(),
        meeting=Meeting(address=LOOPBACK, port=0, is_here=True, local_addr=LOOPBACK),
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
