"""A step whose last sums come while the next forward runs: who waits for what, who finishes it."""
