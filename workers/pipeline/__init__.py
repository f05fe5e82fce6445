"""The passes of one rank through its chunks of the model, and the links to its neighbours."""
