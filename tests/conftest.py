"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# A deadline per example says more about the load of the machine than about the code.
settings.register_profile("bundlerun", deadline=None)
settings.load_profile("bundlerun")
