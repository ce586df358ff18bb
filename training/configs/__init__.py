"""Presets, one TOML file for each domain."""
