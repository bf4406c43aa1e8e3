"""LightningDataModules, one per record type."""
