"""Stateless torch functions: attention, masking, position, randomness, distributed, similarity."""
