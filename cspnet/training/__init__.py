"""The run: its state, one step, the loop, checkpoints."""
