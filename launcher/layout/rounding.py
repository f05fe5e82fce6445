"""Whole numbers, rounded up."""

from __future__ import annotations


def divided_up(number: int, by: int) -> int:
    """The least whole number that is `number / by` or more."""
    return -(-number // by)


def rounded_up(number: int, to: int) -> int:
    """The least multiple of `to` that is `number` or more."""
    return divided_up(number, to) * to
