"""Memory that is full: what fits is found, at the start or for the message, and the run is the one it would have been.

Where there is no GPU, one is played: a network that raises torch's own error above so many pictures.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from cspnet.cli import micro_batch
from cspnet.cli.build_run import Place
from cspnet.cli.compare_runs import compare_runs
from cspnet.cli.train import main as train
from cspnet.cli.trial import Trial
from cspnet.cli.validate import main as validate
from cspnet.models.network import CspNet
from cspnet.recipe.load import recipe_from_values
from cspnet.reporting.console import Console
from cspnet.runtime import memory
from cspnet.runtime.distributed import World

SHARE = 8


class FullDevice:
    """Networks that take so many pictures at once, in training and in evaluation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most, self.most_evaluated = 10**9, 10**9
        self.networks: list[weakref.ref[CspNet]] = []
        self.seen: list[int] = []
        self.between = lambda: None
        forward = CspNet.forward

        def bounded(network: CspNet, images: torch.Tensor) -> Any:
            if len(images) > 1:  # not the blank picture that a network is tried on when it is built
                if all(known() is not network for known in self.networks):
                    self.networks.append(weakref.ref(network))
                self.seen.append(len(images) if network.training else -len(images))
                self.between()
                if len(images) > (self.most if network.training else self.most_evaluated):
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(network, images)

        monkeypatch.setattr(CspNet, "forward", bounded)
        monkeypatch.setattr(micro_batch, "can_be_measured", lambda device: True)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FullDevice:
    return FullDevice(monkeypatch)


def flags(pictures: Path, folder: Path, *more: object) -> list[str]:
    """A run of 5 steps in which all that remembers or draws is on."""
    words = (
        *("--model", "cspdarknet_tiny", "--model-kwargs", "{drop_rate: 0.2, drop_path_rate: 0.3}", "--img-size", 32),
        *("--device", "cpu", "--precision", "fp32", "--workers", 0, "--batch-size", SHARE, "--steps", 5),
        *("--lr", 0.05, "--cutmix", 1, "--ema.decay", 0.9, "--reprob", 0.3, "--adversarial.lr", 2, "--clip-grad", 5),
        *("--print-freq", 1, "--checkpoint.every_steps", 2, "--log.tensorboard", "false"),
    )
    return [str(word) for word in (*words, "--data-path", pictures, "--output-dir", folder, *more)]


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


# Found at the start


def test_auto_is_the_run_with_the_number_that_it_finds(
    picture_tree: Path, tmp_path: Path, device: FullDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights, average, optimizer, random state and records are those of a run that was told the number."""
    assert train(flags(picture_tree, tmp_path / "told", "--micro-batch", 4)) == 0
    capsys.readouterr()
    device.most, device.seen = 5, []
    torch.rand(7)  # the generator stands elsewhere
    assert train(flags(picture_tree, tmp_path / "auto", "--micro-batch", "auto")) == 0
    assert abs(device.seen[0]) == SHARE, "the whole share comes first"
    assert "micro-batch 4 fits (auto): 4 x 2 pictures a step in each process" in capsys.readouterr().out
    assert "micro_batch: auto" in (tmp_path / "auto" / "recipe.yaml").read_text()
    assert compare_runs(tmp_path / "auto", tmp_path / "told") is None


def test_a_resumed_run_may_have_another(
    picture_tree: Path, tmp_path: Path, device: FullDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert train(flags(picture_tree, folder, "--val-split", "null", "--micro-batch", 4, "--steps", 1)) == 0
    device.most = 2
    capsys.readouterr()
    resumed = ("--micro-batch", "auto", "--resume", "auto", "--steps", 2)
    assert train(flags(picture_tree, folder, "--val-split", "null", *resumed)) == 0
    said = capsys.readouterr()
    assert "micro-batch 2 fits (auto): 2 x 4" in said.out
    assert "train.micro_batch was" not in said.err
    last = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    assert last["progress"]["step"] == 2
    assert last["global_batch_size"] == SHARE


def test_a_validation_batch_must_fit_too(
    picture_tree: Path, tmp_path: Path, device: FullDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    device.most_evaluated = 3
    assert train(flags(picture_tree, tmp_path / "run", "--micro-batch", "auto", "--steps", 1)) == 0
    assert "micro-batch 2 fits (auto)" in capsys.readouterr().out
    too_many = flags(picture_tree, tmp_path / "other", "--micro-batch", "auto", "-vb", 5)
    assert train(too_many) == 2
    assert "eval.batch_size: 5 pictures do not fit on cpu" in last_line(capsys)
    assert not (tmp_path / "other").exists()


def test_nothing_fits(
    picture_tree: Path,
    tmp_path: Path,
    device: FullDevice,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(trial: Trial, batch_size: int, passes: int) -> None:
        tried.append((batch_size, passes))
        raise torch.OutOfMemoryError

    tried: list[tuple[int, int]] = []
    monkeypatch.setattr(Trial, "train", fail)
    assert train(flags(picture_tree, tmp_path / "run", "--micro-batch", "auto")) == 2
    assert tried == [(8, 1), (4, 2), (2, 4), (1, 8)]
    assert "train.micro_batch: not even one picture fits on cpu: use a smaller --img-size" in last_line(capsys)
    assert not (tmp_path / "run").exists()


def test_all_processes_take_the_smallest_answer(
    picture_tree: Path, tmp_path: Path, device: FullDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micro_batch, "gather_objects", lambda world, mine: [mine, (2, True), (4, True)])
    assert train(flags(picture_tree, tmp_path / "run", "--micro-batch", "auto", "--steps", 1)) == 0
    assert set(device.seen[-4:]) <= {2, -2}


def test_without_a_gpu_auto_says_that_it_does_nothing(
    picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(flags(picture_tree, tmp_path / "run", "--micro-batch", "auto", "--steps", 1)) == 0
    assert "micro-batch 8, as without train.micro_batch auto: a CUDA GPU says" in capsys.readouterr().out


def test_a_trial_does_what_a_step_does(picture_tree: Path, device: FullDevice) -> None:
    """Its largest pictures, the attack, the optimizer's state, the average, gradients beside a second pass."""
    recipe = recipe_from_values(
        {
            "model.name": "cspdarknet_tiny",
            "data.train_px": 64,
            "data.start_px": 32,
            "data.ramp_epochs": [0, 2],
            "adversarial.lr": 1.0,
            "ema.decay": 0.5,
        },
        "test",
    )
    sizes = []
    forward = CspNet.forward

    def watching(network: CspNet, images: torch.Tensor) -> Any:
        has_gradients = next(network.parameters()).grad is not None
        sizes.append((tuple(images.shape), network.training, has_gradients))
        return forward(network, images)

    trial = Trial(recipe, 3, Place(World(size=2), torch.device("cpu"), torch.float32, Console(0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CspNet, "forward", watching)
        trial.train(4, passes=3)
        trial.validate(5)
    step = [(False, False), (True, False), (False, True), (True, True)]  # attack and pass, twice
    assert sizes == [((4, 3, 64, 64), *flags) for flags in step * 2] + [((5, 3, 64, 64), False, False)]
    assert trial.state.optimizer.state
    assert trial.state.ema is not None
    assert trial.buckets.numel() == sum(4 * p.numel() for p in trial.state.model.parameters())


# Found when it was too late


def test_out_of_memory_in_a_step_says_what_fits(
    picture_tree: Path, tmp_path: Path, device: FullDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    def shrink() -> None:
        if len([size for size in device.seen if size > 0]) == 4:
            device.most = 3

    device.between = shrink
    assert train(flags(picture_tree, folder)) == 2
    message = last_line(capsys)
    assert "out of memory in step 4, with 8 pictures of 32 px at once, on cpu" in message
    assert "--micro-batch 2, or auto, fits and takes the same steps (2 x 4 in each process)" in message
    assert "go on with --resume auto" in message
    assert train(flags(picture_tree, folder, "--resume", "auto", "--micro-batch", 2)) == 0
    assert torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["progress"]["step"] == 5


def test_the_run_is_gone_before_something_smaller_is_tried(
    picture_tree: Path, tmp_path: Path, device: FullDevice
) -> None:
    """What the run held must not be in the way of the trial, and count as what does not fit."""
    alive = []
    device.most = 4
    device.between = lambda: alive.append([known() is not None for known in device.networks])
    assert train(flags(picture_tree, tmp_path / "run", "--adversarial.lr", 0)) == 2
    assert alive[0] == [True]
    assert alive[-1] == [False, True], "the network of the run that failed is still there"


def test_out_of_memory_in_a_validation_says_what_fits(
    picture_tree: Path, tmp_path: Path, device: FullDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    device.most_evaluated = 3
    assert train(flags(picture_tree, tmp_path / "run", "--adversarial.lr", 0, "--dry-run")) == 2
    message = last_line(capsys)
    assert "out of memory in the validation behind step 1, with 8 pictures of 32 px" in message
    assert "--validation-batch-size 2 fits" in message
    assert "--resume" not in message


def test_out_of_memory_in_the_attack(
    picture_tree: Path, tmp_path: Path, device: FullDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    device.most_evaluated = 3  # it uses the running statistics
    assert train(flags(picture_tree, tmp_path / "run", "--val-split", "null")) == 2
    message = last_line(capsys)
    assert "out of memory in step" in message
    assert "--micro-batch 2, or auto, fits" in message


def test_out_of_memory_in_test_only(
    picture_tree: Path, tmp_path: Path, device: FullDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    assert train(flags(picture_tree, tmp_path / "run", "--steps", 1)) == 0
    device.most_evaluated = 4
    capsys.readouterr()
    assert train(["--test-only", "--resume", str(last), "--micro-batch", "auto"]) == 2
    assert "out of memory in the validation, with 8 pictures of 32 px" in last_line(capsys)


def test_out_of_memory_elsewhere(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the network is built, on a CPU (whose error is another), and in validate.py."""
    folder = tmp_path / "run"
    assert train(flags(picture_tree, folder, "--steps", 1)) == 0

    def fail(network: CspNet, images: torch.Tensor) -> Any:
        if len(images) >= least[0]:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        return forward(network, images)

    forward, least = CspNet.forward, [0]
    monkeypatch.setattr(CspNet, "forward", fail)
    for least[0], line in ((1, "before the first step, on cpu"), (2, "in step 1, with 8 pictures")):
        capsys.readouterr()
        assert train(flags(picture_tree, tmp_path / "other", "--adversarial.lr", 0, "--dry-run")) == 2
        assert f"out of memory {line}" in last_line(capsys)
    assert validate(["--checkpoint", str(folder / "checkpoints" / "last.pt"), "--data-path", str(picture_tree)]) == 2
    assert "out of memory in the validation, on cpu: use a smaller --batch-size" in last_line(capsys)


def test_what_else_goes_wrong_is_no_shortage(picture_tree: Path, tmp_path: Path, device: FullDevice) -> None:
    def fail() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    device.between = fail
    assert train(flags(picture_tree, tmp_path / "run", "--micro-batch", "auto")) == 1
    assert train(flags(picture_tree, tmp_path / "run")) == 1


# The search


@pytest.mark.parametrize(("peaks", "found"), [({8: 91, 4: 90, 2: 10}, 4), ({8: 90}, 8), ({8: 99, 4: 99, 2: 91}, None)])
def test_a_tenth_is_left(monkeypatch: pytest.MonkeyPatch, peaks: dict[int, int], found: int | None) -> None:
    tried: list[int] = []
    monkeypatch.setattr(memory, "room_bytes", lambda device: 100)
    monkeypatch.setattr(memory, "peak_bytes", lambda device: peaks[tried[-1]])
    assert memory.find_largest([8, 4, 2], tried.append, torch.device("cpu")) == found
    assert tried == list(peaks)[: len(tried)]


# On a GPU


@pytest.fixture
def small_gpu() -> Any:
    """A GPU of which this process may have 3 GiB."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 3 * 2**30 / total), 0)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, 0)


GPU = (*("--device", "cuda:0", "--img-size", 224, "--global-batch", 48, "--batch-size", 48, "--lr", 0.01),)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_finds_what_fits(
    picture_tree: Path, tmp_path: Path, small_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """cspresnet50 in float32 takes about 0.1 GiB a picture of 224 px: 48 are too many for 3 GiB, one is not."""
    large = ("--model", "cspresnet50", "--model-kwargs", "{}", *GPU, "--steps", 1)
    assert train(flags(picture_tree, tmp_path / "told", *large)) == 2
    message = last_line(capsys)
    assert "out of memory in step 1, with 48 pictures of 224 px at once, on cuda:0" in message
    assert "of them in use at the height: --micro-batch " in message
    told = int(message.split("--micro-batch ")[1].split(",")[0])
    assert train(flags(picture_tree, tmp_path / "auto", *large, "--micro-batch", "auto")) == 0
    assert f"micro-batch {told} fits (auto): {told} x {48 // told}" in capsys.readouterr().out
    assert train(flags(picture_tree, tmp_path / "fits", *large, "--micro-batch", told)) == 0
