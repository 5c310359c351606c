"""The doors: command lines, and building the objects of a run from its recipe."""
