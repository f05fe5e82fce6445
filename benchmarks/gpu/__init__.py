"""What one GPU can show in eight minutes: `python3 -m benchmarks gpu`, or `make gpu`.

On top is what runs the cases and keeps what they find (`runner`), and what they have in common
(`bench`); the cases are in `cases`. Only a case uses torch: the process that runs them never does.
"""
