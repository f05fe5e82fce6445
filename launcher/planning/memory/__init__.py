"""Pure: what a plan needs in memory.

held: micro-batches in flight -> ranks: all that a rank of each stage needs, and a node
                              -> fits: what is not enough, and what would be -> table: in words
"""
