"""Pure: what a model costs and a cluster has -> the best plan, its step time, its memory.

model costs, cluster, request -> candidates -> memory, forecast -> the best, and a bound for any
"""
