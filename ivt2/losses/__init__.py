"""Losses as functions without configuration; `contrastive_local` and `sigmoid` alone talk to other ranks."""
