"""`torchrun ... -m bundlerun.warm train.py ...`: ranks that need not import torch again."""

import sys

from bundlerun.workers.own.warm.start import main

if __name__ == "__main__":
    main(sys.argv[1:])
