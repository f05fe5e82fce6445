"""Texts as tokens: files of either, what makes tokens, samples with a label."""
