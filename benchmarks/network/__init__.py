"""Benchmarks between hosts that are network namespaces of this machine; as root."""
