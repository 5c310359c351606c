"""Our networks in timm's table: after `import cspnet.timm_models`, `timm.create_model("csresnext50_omega")` works.

    import timm
    import cspnet.timm_models

    model = timm.create_model("csresnext50_omega", num_classes=10, in_chans=1)
    backbone = timm.create_model("csdarknet53", features_only=True, out_indices=(2, 3, 4))
    timm.data.resolve_model_data_config(model)

A name that timm has already keeps timm's network: `SKIPPED` holds those, `REGISTERED` the others. Options are those of
`cspnet.create_model`. There are no published weights to download, so `pretrained=True` is an error unless a
`pretrained_cfg` or `pretrained_cfg_overlay` says where weights are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
from timm.models import FeatureInfo, build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from cspnet.errors import ModelError
from cspnet.models.zoo import ZOO, create_model
from cspnet.weights.preprocessing import Preprocessing, darknet_preprocessing, published_preprocessing

__all__ = ["REGISTERED", "SKIPPED"]

_WEIGHT_SOURCES = ("file", "url", "hf_hub_id", "state_dict")


def _is_timms(name: str) -> bool:
    return timm.is_model(name) and timm.models.model_entrypoint(name).__module__ != __name__


SKIPPED = tuple(name for name in ZOO if _is_timms(name))
"""Networks of ours whose name timm has: `timm.create_model` gives timm's, `cspnet.create_model` ours."""
REGISTERED = tuple(name for name in ZOO if name not in SKIPPED)
"""Networks of ours that `timm.create_model` gives."""


def _describe(name: str) -> dict[str, Any]:
    """What timm wants to know of a network: its pictures and the names of its ends."""
    entry = ZOO[name]
    described: dict[str, Any] = {
        "input_size": (entry.spec.in_chs, entry.input_px, entry.input_px),
        "num_classes": 1000,
        "first_conv": "stem.conv1.conv",
        "classifier": "head.fc",
    }
    pictures: Preprocessing | None = None
    if entry.spec.init == "darknet":
        pictures = darknet_preprocessing(entry.input_px)
    elif name == "cspdarknet53_mish":
        pictures = published_preprocessing("deepspark", "cspdarknet53")
    if pictures is not None:
        described |= {
            "input_size": (entry.spec.in_chs, pictures.size_px, pictures.size_px),
            "mean": pictures.mean,
            "std": pictures.std,
            "crop_pct": pictures.crop_ratio,
            "interpolation": pictures.interpolation,
        }
    return described


default_cfgs = generate_default_cfgs({name: _describe(name) for name in REGISTERED})  # register_model looks for it


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    places = (options.get("pretrained_cfg"), options.get("pretrained_cfg_overlay"))
    if pretrained and not any(isinstance(p, dict) and any(p.get(key) for key in _WEIGHT_SOURCES) for p in places):
        raise ModelError(
            f"model {name}: no published weights to download; create it with pretrained=False "
            "and load a file with cspnet.load_weights(model, path)"
        )

    def create(**overrides: Any) -> nn.Module:
        model: Any = create_model(name, **overrides)
        info = zip(model.feature_info.names, model.feature_info.widths, model.feature_info.strides, strict=True)
        features = [{"module": key, "num_chs": chs, "reduction": stride} for key, chs, stride in info]
        model.feature_info = FeatureInfo(features, tuple(range(len(features))))
        return model

    every = tuple(range(len(ZOO[name].spec.stages) + 1))
    feature_cfg = {"flatten_sequential": True, "out_indices": every}
    return build_model_with_cfg(create, name, pretrained, feature_cfg=feature_cfg, **options)


def _create_entry_point(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        return _create(name, pretrained, options)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"cspnet's {name}: {ZOO[name].source}."
    return create


for _name in REGISTERED:
    globals()[_name] = register_model(_create_entry_point(_name))  # which adds the name to __all__
