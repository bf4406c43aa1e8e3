"""Metrics: a function and a torchmetrics class for each task."""
