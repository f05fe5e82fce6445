"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import settings

# Threads that spin at the end of an operation waste whole time slices on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A deadline per example says more about the load of the machine than about the code.
settings.register_profile("bundlerun", deadline=None)
settings.load_profile("bundlerun")
