"""Encoders that training starts from."""
