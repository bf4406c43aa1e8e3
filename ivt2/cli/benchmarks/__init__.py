"""What `ivt2.cli.benchmark` measures: one suite a file, with the clock that all share and the clips that they read."""
