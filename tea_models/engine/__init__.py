"""What a model takes to run: measured by the engine, or by formula."""
