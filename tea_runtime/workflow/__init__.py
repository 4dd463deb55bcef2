"""The small workflow runner."""
