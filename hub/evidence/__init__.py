"""Recordings of alarms: asked of devices, kept within bounds, shown on the page."""
