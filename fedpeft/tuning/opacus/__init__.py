"""Opacus as the engine of per-example gradients (docs/adr/0040-opacus-as-the-engine.md)."""
