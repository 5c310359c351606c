"""Train Cross Stage Partial Networks.

model = cspnet.create_model("cspdarknet53", num_classes=1000)
cspnet.list_models("csp*")
report = cspnet.load_weights(model, "cspdarknet53.pth")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cspnet.models import create_model, list_models
    from cspnet.weights import load_weights

__all__ = ["__version__", "create_model", "list_models", "load_weights"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: it is left until one of these is asked for, so that --help answers at once.
    if name in ("create_model", "list_models"):
        from cspnet import models

        return getattr(models, name)
    if name == "load_weights":
        from cspnet.weights import load_weights

        return load_weights
    raise AttributeError(f"module 'cspnet' has no attribute {name!r}")
