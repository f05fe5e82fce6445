from bundlerun.workers.own.protect import Protection as Protection
from bundlerun.workers.own.protect import protect as protect

__all__ = ["Protection", "protect"]
