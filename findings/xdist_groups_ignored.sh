#!/usr/bin/env bash
# pytest-xdist does not keep the tests of one group together under pytest 9.2, and says nothing.
#
# Expected: with `--dist loadgroup`, tests that are marked with one `xdist_group` run in one worker.
# True: they are spread over the workers as if there were no mark. The worker of pytest-xdist writes
# the group behind the identifier of a test ("test@group"), into `item._nodeid`, and the scheduler
# looks for it there. pytest 9.2 has a structured identifier, from which `item.nodeid` is made; what
# is written to `_nodeid` is not read any more. Under pytest 9.0 the groups hold.
#
# A scheduler made by the hook `pytest_xdist_make_scheduler`, a subclass of LoadScopeScheduling that
# looks at the path of a test, works with both.
#
# Versions: pytest 9.2.0 with pytest-xdist 3.8.0, beside pytest 9.0.2; Python 3.11 and newer.
# Source: `WorkerInteractor.pytest_collection_modifyitems` in xdist/remote.py; `Node.nodeid` in
# _pytest/nodes.py.
#
# Exits with 0 while this is so, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/tests"
cat > "$folder/tests/test_grouped.py" <<'PYTHON'
import os
import pathlib
import time

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.mark.xdist_group("together")
@pytest.mark.parametrize("number", range(8))
def test_of_a_group(number):
    time.sleep(0.2)  # a worker that has all of them leaves the other one idle meanwhile
    (HERE / f"ran_{number}_{os.environ['PYTEST_XDIST_WORKER']}").touch()
PYTHON

num_workers_under() {
    python3 -m venv "$folder/venv-$1"
    "$folder/venv-$1/bin/pip" install --quiet "pytest==$1" pytest-xdist==3.8.0
    rm -f "$folder"/tests/ran_*
    "$folder/venv-$1/bin/python" -m pytest -q -n 2 --dist loadgroup "$folder/tests" >&2
    ls "$folder/tests" | sed -n 's/^ran_[0-9]*_//p' | sort -u | wc -l
}

old=$(num_workers_under 9.0.2)
new=$(num_workers_under 9.2.0)
echo "workers that ran tests of the one group: pytest 9.0.2: $old, pytest 9.2.0: $new"
[[ "$old" == 1 && "$new" == 2 ]]
