"""From a config and a corpus to a model."""
