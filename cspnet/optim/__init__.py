"""The learning rate, the optimizer, the loss and the moving average."""
