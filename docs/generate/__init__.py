"""Pages that are made of the source: options of all commands, and every error that is told.

`docs/generate/hook.py` gives them to MkDocs; nothing here imports torch.
"""
