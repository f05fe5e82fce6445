"""Samples of a stream: who reads which, where a pass may begin, and how samples are told apart."""
