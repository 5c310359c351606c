"""The rows of the table of networks, by where they come from."""
