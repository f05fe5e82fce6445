"""What `bundlerun init` proposes: looks at machine and data, and writes a commented file.

Looks come first and decide nothing; the proposal is a pure function of them; nothing imports torch.
"""
