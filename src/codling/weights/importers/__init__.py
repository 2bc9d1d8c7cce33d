"""Importers of published checkpoints. Quirks of published code live here and nowhere else."""
