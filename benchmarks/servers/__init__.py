"""Servers that are measured beside Skillet: each answers one observation with one action of the same skill decoder."""
