"""What each piece of a model costs, between any two neighbouring places where it can be cut.

model -> pieces -> a pass of training, marked where each piece begins -> `ModelCosts`

The pass is that of the whole model, as it is: no piece is run apart from the others. So memory,
caches and what is recomputed in the backward are as in training.
"""
