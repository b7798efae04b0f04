"""Tables that compare many runs."""
