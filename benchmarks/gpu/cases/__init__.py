"""The cases: each module has a function `run(bench)` and says in its first lines what it shows."""
