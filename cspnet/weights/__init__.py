"""Weight files, ours and other people's."""

from cspnet.weights.load import LoadReport, load_weights
from cspnet.weights.preprocessing import Preprocessing

__all__ = ["LoadReport", "Preprocessing", "load_weights"]
