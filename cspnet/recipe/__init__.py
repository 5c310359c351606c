"""Recipes: the schema, and how files and the command line become one."""
