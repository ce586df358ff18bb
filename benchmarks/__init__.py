"""Measurements to repeat: ``python -m benchmarks.NAME``, each with a table for a person and numbers for a file."""
