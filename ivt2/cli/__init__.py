"""The doors: one short Hydra main per command."""
