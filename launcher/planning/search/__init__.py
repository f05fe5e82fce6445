"""Pure: all plans of a request -> the best, and the least time that any of them could take.

frames (all but cuts) by bound -> partition -> foresee -> moves of cuts -> plans, bound

Whoever wants a plan comes in by `best`.
"""
