"""Damaged and hostile files for everything that reads files of strangers: scripts/fuzz.py."""
