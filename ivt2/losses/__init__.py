"""Losses as pure functions: no collectives, no configuration."""
