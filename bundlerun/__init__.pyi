from bundlerun.workers.own.bundle import Bundle as Bundle
from bundlerun.workers.own.cut import Cut as Cut
from bundlerun.workers.own.protect import Protection as Protection
from bundlerun.workers.own.protect import protect as protect

__all__ = ["Bundle", "Cut", "Protection", "protect"]
