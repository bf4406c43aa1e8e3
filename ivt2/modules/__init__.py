"""LightningModules, one per stage and task (blocks of networks live in ivt2.nn)."""
