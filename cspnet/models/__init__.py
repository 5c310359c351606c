"""Networks: specs, blocks, stages, and the table of names."""

from cspnet.models.zoo import create_model, list_models

__all__ = ["create_model", "list_models"]
