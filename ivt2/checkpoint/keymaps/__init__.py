"""How the keys of published checkpoints become ours: one versioned map for each layout."""
