"""Whole networks, readable top to bottom."""
