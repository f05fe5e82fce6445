from bundlerun.workers.own.bundle import Bundle as Bundle
from bundlerun.workers.own.cut import Cut as Cut
from bundlerun.workers.own.protect import protect as protect
from bundlerun.workers.own.protection import Protection as Protection

__all__ = ["Bundle", "Cut", "Protection", "protect"]
