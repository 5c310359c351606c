"""What the program runs on: processes, devices, and addressed randomness."""
