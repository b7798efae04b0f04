"""How good an extractor is, and which thresholds suit it."""
