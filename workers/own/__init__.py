"""The library's doors, for people's own loops: `from bundlerun import protect`.

What is here is public: documented in docs/own_loop.md, typed, and kept as it is. It is made of the
same parts as a run of `bundlerun.workers.train`, and nothing imports it but its users.
"""
