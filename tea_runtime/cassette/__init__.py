"""Record and replay: answers of models in a file, so that tests of a workflow need neither model nor engine."""
