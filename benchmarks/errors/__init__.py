"""Input that is wrong, one case each: what is told, with which exit code, after how long.

`python -m benchmarks errors` runs the cases of `catalogue/` in a folder of odd files and writes
what they print into docs/benchmarks/errors.md. Only benchmarks/__main__.py and tests come in.
"""
