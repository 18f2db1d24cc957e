"""Gives signed releases to the fleet and takes them back, one modality at a time."""
