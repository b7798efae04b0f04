"""Many articles: in, out, interrupted and resumed, on one machine or on many."""
