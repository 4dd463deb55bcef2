"""`models.lock`: pins, frozen installs, bundles."""
