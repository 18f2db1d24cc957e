"""Measurements behind the decisions; each prints a table and needs nothing but the repository (and ../shared)."""
