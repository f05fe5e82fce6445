"""Hides the packages that HIDDEN names, as if they were not installed; Python imports it itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _Hiding(PathFinder):
    @classmethod
    def find_spec(
        cls,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in os.environ.get("HIDDEN", "").split(","):
            return None
        return super().find_spec(fullname, path, target)


sys.meta_path = [_Hiding if finder is PathFinder else finder for finder in sys.meta_path]
