"""Pure: a step of a plan on a cluster, event by event.

cells: what is alike is looked at once
work: what each stage has to do -> passes: what its ranks do in which order, with whom
                                -> sums: what the replicas of a stage send, leg by leg

Whoever wants to know how long a step takes comes in by `launcher.planning.forecast`.
"""
