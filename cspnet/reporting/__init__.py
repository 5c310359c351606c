"""What a run tells: the console, metrics files, TensorBoard."""
