"""Validation: integer counts, every picture once."""
