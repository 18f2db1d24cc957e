"""Recordings and benchmarks through the device: how well faults are seen, told apart, and kept from being cried."""
