"""What the fleet page shows."""

JAPANESE: dict[str, str] = {}
