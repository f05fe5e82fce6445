"""Imported first of all by a fork server that Python itself has started; for nobody else.

That is the server that takes the place of one that was killed, and every one from Python 3.14 on.
It can be told nothing but names of modules to import, so that here the import does something.
"""

from __future__ import annotations

import os
import signal

from bundlerun.launcher.process import die_with_parent, hold_children
from bundlerun.launcher.ranks.rank_signals import GROUP_SIGNALS

signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
die_with_parent(os.getppid())
hold_children()
