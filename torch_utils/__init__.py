"""Torch helpers that know nothing of heads: native ops, ranks, statistics, random streams."""
