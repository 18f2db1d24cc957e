"""Learns encoders stage by stage from recordings; the only owner of torch."""
