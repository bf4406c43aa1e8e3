"""What happens around training: checkpoints, figures, provenance, results, throughput."""
