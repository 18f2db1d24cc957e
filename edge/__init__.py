"""Beside the line: sensors to windows to embeddings to scores and alarms. Never torch."""
