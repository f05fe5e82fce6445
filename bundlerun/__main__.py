"""`python -m bundlerun` is `bundlerun`."""

from __future__ import annotations

import sys

from bundlerun.launcher.cli import main

sys.exit(main())
