"""Takes what the line says: broker, ingest, store, alarms, dashboard."""
