"""Weight files, ours and other people's."""

from cspnet.weights.load import LoadReport, load_weights

__all__ = ["LoadReport", "load_weights"]
