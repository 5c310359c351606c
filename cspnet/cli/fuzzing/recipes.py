"""Recipes and command lines: valid ones, and some that are built to do harm."""

from __future__ import annotations

from collections.abc import Sequence

from cspnet.cli.fuzzing.watch import CANARY, Files

__all__ = ["YAML_WORDS", "command_line_seeds", "command_line_traps", "recipe_seeds", "recipe_traps"]

_RECIPE = b"""# a recipe
base: base/below.yaml
model:
  name: cspdarknet_tiny
  options: {activation: mish, drop_rate: 0.1}
data:
  train_px: 64
  mean: [0.5, 0.5, 0.5]
  train_scale: [0.25, 1.0]
schedule:
  name: multistep
  milestones_epochs: [30.0, 60.0]
optim: {lr: 0.05, weight_decay: 5e-4, nesterov: true}
"""
_BELOW = b"model:\n  num_classes: 10\noptim.momentum: 0.85\ndata:\ntrain:\n  epochs: 3\n  seed: 7\n"
YAML_WORDS = (
    *(
        b"&a ",
        b"*a",
        b"<<: *a",
        b"!!merge <<: ",
        b"!!binary ",
        b"!!set ",
        b"!!omap ",
        b"!!timestamp ",
        b"!!int ",
        b"!!float ",
    ),
    *(
        b"? ",
        b": ",
        b"- ",
        b"\n---\n",
        b"%YAML 1.1\n",
        b"\t",
        b"|\n",
        b">-\n",
        b"null",
        b".inf",
        b".nan",
        b"base: ",
        b"model:\n",
    ),
    *(
        b"!!python/object/apply:os.system [touch canary]",
        b"!!python/name:os.system ",
        b"{",
        b"}",
        b"[",
        b"]",
        b"'",
        b'"',
    ),
)


def _laughs(width: int = 9, depth: int = 12) -> bytes:
    """A list of lists of lists …, written with few letters."""
    lines = [b"a0: &a0 [x, x]"]
    for level in range(1, depth):
        aliases = b", ".join([b"*a%d" % (level - 1)] * width)
        lines.append(b"a%d: &a%d [%s]" % (level, level, aliases))
    return b"\n".join(lines)


def recipe_seeds() -> Sequence[Files]:
    """Recipes with one below them."""
    plain = b"".join(line for line in _RECIPE.splitlines(keepends=True) if not line.startswith(b"base"))
    return {"recipe.yaml": _RECIPE, "base/below.yaml": _BELOW}, {"recipe.yaml": plain}, {"recipe.yaml": _BELOW}


def recipe_traps() -> Sequence[Files]:
    """Recipes that would run code, grow, nest, or lead somewhere else."""
    laughs = b"\n".join(b"  " + line for line in _laughs().splitlines())
    merges = [b"a0: &a0 {x0: 1}"]
    for level in range(1, 12):
        aliases = b", ".join([b"*a%d" % (level - 1)] * 9)
        merges.append(b"a%d: &a%d {!!merge <<: [%s], x%d: 1}" % (level, level, aliases, level))
    texts = (
        _laughs(),
        b"model:\n  name: cspdarknet_tiny\n  options:\n" + b"\n".join(b"  " + line for line in laughs.splitlines()),
        b"model: {name: &a [*a]}\n",
        b"model: {options: &a {b: *a}}\n",
        b"\n".join(merges),
        b"model: {name: !!python/object/apply:os.system ['touch " + CANARY.encode() + b"']}\n",
        b"!!python/object/new:os.system [touch " + CANARY.encode() + b"]\n",
        b"model: {name: !!python/object/apply:builtins.eval [\"open('" + CANARY.encode() + b"', 'w')\"]}\n",
        b"model: {options: {a: !!python/name:os.system }}\n",
        b"[" * 20_000,
        b"model: " + b"{a: " * 3_000,
        b"- " * 20_000,
        b"model: {name: " + b"x" * 900_000 + b"}\n",
        b"model: {name: cspdarknet_tiny}\n" * 5_000,
        b"train: {seed: " + b"9" * 100_000 + b"}\n",
        b"train: {seed: !!int '0b" + b"1" * 100_000 + b"'}\n",
        b"train: {seed: !!int '190:20:30'}\noptim: {lr: !!float '1:1e300:59'}\n",
        b"data: {root: !!timestamp 9999-99-99}\n",
        b"data: {root: !!binary '====', mean: !!set {a, b}}\n",
        b"? [a, b]\n: c\n? {d: e}\n: f\n",
        b'model: {name: "\\ud800", pretrained: "a\\0b"}\n',
    )
    bases = (b"/dev/zero", b"recipe.yaml", b'"a\\0b"', b'"\\ud800"', b"x/" * 3000, b"../" * 500, b"[a]", b".", b"~root")
    chain = {f"{i}.yaml": b"base: %d.yaml\n" % (i + 1) for i in range(1500)} | {"1500.yaml": _BELOW}
    return (
        *({"recipe.yaml": text} for text in texts),
        *({"recipe.yaml": b"base: " + base + b"\n"} for base in bases),
        {"recipe.yaml": b"base: 0.yaml\n", **chain},
        {"recipe.yaml": b"base: loop.yaml\n", "loop.yaml": b"base: recipe.yaml\n"},
    )


def command_line_seeds() -> Sequence[Files]:
    """Command lines of train.py, an argument a line."""
    lines = (
        "--model\ncspdarknet_tiny\n--lr\n0.1\n--mean\n0.5,0.5,0.5\n--model-kwargs\nactivation=mish\ndrop_rate=0.2",
        "--batch-size\n64\n--epochs=120\n--data-path\n/data\n--optim.betas\n[0.9, 0.99]\n--channels-last\nfalse",
        "--train.seed\n7\n--model.options\n{activation: mish}\n--schedule.milestones_epochs\n30\n60\n--cutmix\n1e-1",
    )
    return tuple({"arguments.txt": text.encode()} for text in lines)


def command_line_traps() -> Sequence[Files]:
    """Values that YAML would read as something large, deep or alive."""
    values = (
        *(
            b" ".join(_laughs().split(b"\n")),
            b"{a: &a [x, x], b: &b [*a, *a, *a, *a], c: [*b, *b, *b, *b]}",
            b"[" * 20_000,
        ),
        *(
            b"!!python/object/apply:os.system ['touch " + CANARY.encode() + b"']",
            b"&a [*a]",
            b"&a {b: *a}",
            b"9" * 100_000,
        ),
        *(
            b"{a: &a {k: v}, b: &b {!!merge <<: [*a, *a]}}",
            b"{" + b"a: {" * 3_000,
            b"=" * 100,
            b"a=" * 1000,
            b"\xed\xa0\x80",
        ),
    )
    flags = (b"--model.options", b"--lr", b"--train.seed", b"--mean", b"--data-path", b"--model", b"--optim.betas")
    return tuple({"arguments.txt": flag + b"\n" + value} for flag in flags for value in values)
