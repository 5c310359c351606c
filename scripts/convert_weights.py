#!/usr/bin/env python3
"""Convert a weight file between our layout and those of timm, mmpretrain, DeepSpark and Darknet.

    python3 scripts/convert_weights.py runs/mine/checkpoints/best.pt mine.pth --to timm
    python3 scripts/convert_weights.py csresnet50.weights csresnet50.safetensors --to safetensors --model csresnet50
    python3 scripts/convert_weights.py csresnet50.safetensors csresnet50.weights --to darknet

--to safetensors keeps our own names, and with them model, classes and geometry, so that such a file needs no --model.
The other layouts hold numbers alone. Weights are written as float32; nothing is trained, averaged or rounded.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, join_tokens, non_empty_path, run_door
from cspnet.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from torch import nn

    from cspnet.weights.match import Weights

ENDINGS = {
    "timm": (".pth", ".pt", ".safetensors"),
    "mmpretrain": (".pth", ".pt"),
    "darknet": (".weights",),
    "deepspark": (".pth", ".pt"),
    "safetensors": (".safetensors",),
}
"""Where --to can lead, and how such files end."""


def check_target(target: Path, layout: str) -> None:
    """Find out before the work whether the result can be written.

    Raises:
        UserError: it is there already, has no folder, or its name does not end like such a file.
    """
    if target.exists():
        raise UserError(f"{target}: is there already; remove it or give another name")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}; make it first")
    if target.suffix not in ENDINGS[layout]:
        raise UserError(f"{target}: --to {layout} writes files that end in {' or '.join(ENDINGS[layout])}")


def describe(content: Any, weights: Weights, name: str, options: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """What a file of ours says beside its weights: what the source says, or what is known of it."""
    from cspnet.cli.build import geometry_values
    from cspnet.weights.match import describes_itself

    if describes_itself(content):
        keys = ("arch", "num_classes", "classes", "recipe", "eval_cfg")
        about = {key: content[key] for key in keys if key in content}
        return {**about, "recipe": {**content["recipe"], "model.options": dict(options)}, "seen": weights.seen}
    recipe: dict[str, Any] = {"model.name": name, "model.options": dict(options)}
    known: dict[str, Any] = {"arch": name, "num_classes": num_classes, "classes": [], "seen": weights.seen}
    if weights.preprocessing is not None:
        recipe |= geometry_values(weights.preprocessing)
        known["eval_cfg"] = asdict(weights.preprocessing)
    return {**known, "recipe": recipe}


def write(target: Path, model: nn.Module, layout: str, about: Mapping[str, Any], seen: int) -> None:
    """Write a model in a layout; the file is complete or absent.

    Raises:
        CheckpointError: the layout has no such network.
        UserError: the file cannot be written.
    """
    import torch
    from safetensors import SafetensorError

    from cspnet.runtime.files import replacing, write_atomically
    from cspnet.weights.darknet import darknet_bytes
    from cspnet.weights.files import write_safetensors
    from cspnet.weights.layouts import LAYOUTS, export_state

    where = str(target)
    try:
        if layout == "darknet":
            write_atomically(target, darknet_bytes(model, where, seen))
            return
        if layout == "safetensors":
            write_safetensors(target, model.state_dict(), about)
            return
        state = export_state(model, LAYOUTS[layout], where)
        if target.suffix == ".safetensors":
            write_safetensors(target, state, {})
            return
        content: Any = {"timm": state, "mmpretrain": {"meta": {}, "state_dict": state}, "deepspark": {"model": state}}
        with replacing(target) as temporary:
            torch.save(content[layout], temporary)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise UserError(f"{target}: cannot be written: {reason}") from error


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="convert_weights.py", description=__doc__)
    parser.add_argument("source", type=non_empty_path, metavar="IN", help="checkpoint or weight file")
    parser.add_argument("target", type=non_empty_path, metavar="OUT", help="file to write; it must not be there")
    parser.add_argument("--to", choices=tuple(ENDINGS), required=True, help="layout of OUT")
    parser.add_argument("--model", metavar="NAME", help="model of a file that does not name it")
    parser.add_argument(
        "--model-kwargs", nargs="+", metavar="KEY=VALUE", help="options of --model, such as activation=mish"
    )
    parser.add_argument("--source", dest="layout", default="auto", metavar="NAME", help="layout of IN [%(default)s]")
    parser.add_argument("--num-classes", type=int, metavar="N", help="classes in IN, if it is Darknet's [1000]")
    parser.add_argument("--which", default="auto", metavar="NAME", help="raw, ema, or auto: ema where there is one")
    parser.add_argument("--seen", type=int, metavar="N", help="pictures trained on, for Darknet's header [as in IN]")
    args = parser.parse_all(sys.argv[1:])
    if args.seen is not None and args.to != "darknet":
        raise UserError("--seen is for Darknet's header; leave it out or use --to darknet")
    if args.seen is not None and not 0 <= args.seen < 2**64:
        raise UserError(f"--seen {args.seen}: use a number from 0 to 2**64 - 1")
    check_target(args.target, args.to)

    import torch  # here, because it takes seconds and --help does not need it

    from cspnet.models import create_model
    from cspnet.models.darknet_cfg import CFG_PREFIX, read_cfg_text
    from cspnet.weights.load import count_classes, load_state_dict
    from cspnet.weights.match import SOURCES, WHICH, describes_itself, doubt_export, match_weights, read_weight_file

    for flag, value, known in (("--source", args.layout, SOURCES), ("--which", args.which, WHICH)):
        if value not in known:
            raise UserError(f"{flag} {value}: use {', '.join(known)}")
    where = str(args.source)
    content = read_weight_file(args.source, args.layout)
    name, options = args.model, join_tokens(args.model_kwargs) if args.model_kwargs else {}
    if not isinstance(options, dict):
        raise UserError(f"--model-kwargs {options}: expected options such as activation=mish")
    if describes_itself(content):
        name, options = content["arch"], content["recipe"].get("model.options", {}) | options
        if args.model not in (None, name):
            raise UserError(f"{where}: holds {name}, not {args.model}; leave --model out")
    if name is None:
        raise UserError(f"{where}: does not say which model it holds; name it with --model NAME")
    if name.startswith(CFG_PREFIX) and "text" not in options:
        options = {"text": read_cfg_text(name), **options}  # so that the result is complete without the cfg file
    with torch.device("meta"):
        template = create_model(name, **options)
    weights = match_weights(
        content, template, source=args.layout, which=args.which, num_classes=args.num_classes, where=where
    )
    num_classes = count_classes(template, weights.state, where=where)
    model = create_model(name, num_classes, **options)
    load_state_dict(model, weights.state, where=where)
    about = describe(content, weights, name, options, num_classes)
    write(args.target, model, args.to, about, weights.seen if args.seen is None else args.seen)
    print(f"{where} ({weights.layout}) -> {args.target} ({args.to}): {name}, {num_classes} classes")
    if weights.preprocessing is not None:
        forgets = "" if args.to == "safetensors" else ", which the file does not say"
        print(f"made for {weights.preprocessing}{forgets}")
    doubts = doubt_export(model, args.to, name) if args.to != "safetensors" else ()
    for warning in dict.fromkeys((*weights.warnings, *doubts)):
        print(f"warning: {warning}", file=sys.stderr)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("convert_weights.py", main))
