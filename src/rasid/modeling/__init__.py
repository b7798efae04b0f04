"""The network: built, loaded, made smaller, and exported for the CPU."""
