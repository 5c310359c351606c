"""Checkpoints are whole or absent, whatever fails and whenever; the newest good one is found; others can read them."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import torch

import cspnet
from cspnet.errors import CheckpointError, RunFolderError
from cspnet.training.checkpoint import FORMAT, find_checkpoint, holds_checkpoints, read_checkpoint, save_checkpoint

CALLS: dict[str, tuple[Any, str]] = {
    "os.replace": (os, "replace"),
    "os.fsync": (os, "fsync"),
    "os.link": (os, "link"),
    "torch.save": (torch, "save"),
    "mkstemp": (tempfile, "mkstemp"),
    "write_bytes": (Path, "write_bytes"),
    "unlink": (Path, "unlink"),
}


def make_content(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    parts = ("arch", "num_classes", "classes", "recipe", "eval_cfg", "global_batch_size", "data")
    parts += ("state_dict_ema", "optimizer", "scaler", "progress", "ranks")
    weights = {"weight": torch.randn(50, generator=generator)}
    return {**dict.fromkeys(parts), "format": FORMAT, "step": step, "state_dict": weights}


def save(folder: Path, step: int, *, is_best: bool = False, keep: int = 3) -> Path:
    return save_checkpoint(folder, make_content(step), step=step, is_best=is_best, keep=keep)


def no_warning(text: str) -> None:
    raise AssertionError(text)


def find_step(folder: Path, warn: Callable[[str], None] = no_warning) -> int:
    """The step of the checkpoint that is found, after comparing its tensor with what was saved."""
    found = find_checkpoint(folder, warn)
    assert found is not None
    path, content = found
    step = content["step"]
    assert torch.equal(content["state_dict"]["weight"], make_content(step)["state_dict"]["weight"])
    assert path.parent == folder
    return step


def list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".sha256"}


def temporary_files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if ".tmp" in path.name]


# Saving and keeping


def test_save_returns_the_file_and_links_it(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 7, is_best=True)
    assert path.name == "step-00000007.pt"
    assert list_names(path.parent) == {path.name, "last.pt", "best.pt"}
    for name in (path.name, "last.pt", "best.pt"):
        assert read_checkpoint(path.with_name(name))["step"] == 7
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_stay_and_the_best_survives(tmp_path: Path, keep: int) -> None:
    for step in range(1, 7):
        save(tmp_path, step, is_best=step == 2, keep=keep)
    kept = {f"step-{step:08d}.pt" for step in range(7 - keep, 7)}
    assert list_names(tmp_path) == kept | {"last.pt", "best.pt"}
    assert read_checkpoint(tmp_path / "best.pt")["step"] == 2
    assert read_checkpoint(tmp_path / "last.pt")["step"] == 6
    checksums = {path.name.removesuffix(".sha256") for path in tmp_path.glob("*.sha256")}
    assert checksums == list_names(tmp_path)


def test_all_are_kept(tmp_path: Path) -> None:
    for step in range(1, 7):
        save_checkpoint(tmp_path, make_content(step), step=step, is_best=False, keep=None)
    assert list_names(tmp_path) == {f"step-{step:08d}.pt" for step in range(1, 7)} | {"last.pt"}


def test_protected_ones_stay_beside_the_newest(tmp_path: Path) -> None:
    for step in range(1, 7):
        save_checkpoint(tmp_path, make_content(step), step=step, is_best=False, keep=1, protected={2, 4})
    assert list_names(tmp_path) == {f"step-{step:08d}.pt" for step in (2, 4, 6)} | {"last.pt"}


def test_damaged_later_ones_do_not_push_out_what_a_run_saves_that_went_on_before_them(tmp_path: Path) -> None:
    for step in (3, 6, 9):
        save(tmp_path, step)
    for step in (6, 9):
        cut(tmp_path / f"step-{step:08d}.pt")
    (tmp_path / "last.pt").unlink()
    for step in (4, 5):
        save(tmp_path, step, keep=1)
        warnings: list[str] = []
        assert find_step(tmp_path, warnings.append) == step
        assert len(warnings) == 2
    assert not (tmp_path / "step-00000004.pt").exists()


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    assert find_step(tmp_path) == 100_000_000


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save_checkpoint(tmp_path, {**make_content(5), "again": True}, step=5, is_best=False, keep=3)
    for name in ("step-00000005.pt", "last.pt"):
        assert read_checkpoint(tmp_path / name)["again"] is True


def test_checksum_is_that_of_sha256sum(tmp_path: Path) -> None:
    import hashlib

    path = save(tmp_path, 1)
    line = path.with_name(path.name + ".sha256").read_text()
    assert line == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"


def test_holds_checkpoints(tmp_path: Path) -> None:
    assert not holds_checkpoints(tmp_path / "none")
    assert not holds_checkpoints(tmp_path)
    save(tmp_path, 1)
    assert holds_checkpoints(tmp_path)


def test_without_hard_links_copies_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    path = save(tmp_path, 1, is_best=True)
    for name in ("last.pt", "best.pt"):
        assert read_checkpoint(tmp_path / name)["step"] == 1
        assert not path.samefile(tmp_path / name)


# Finding


def test_nothing_saved_yet(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, no_warning) is None
    assert find_checkpoint(tmp_path / "none", no_warning) is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = (cut, empty, flip_a_bit)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    paths = [save(tmp_path, step) for step in (1, 2, 3)]
    damage(paths[2])  # last.pt is the same file
    warnings: list[str] = []
    assert find_step(tmp_path, warnings.append) == 2
    assert len(warnings) == 1
    assert paths[2].name in warnings[0]
    with pytest.raises(CheckpointError, match=r"step-00000003\.pt"):
        read_checkpoint(paths[2])


@pytest.mark.parametrize("damage", DAMAGES)
def test_all_damaged(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    for path in [save(tmp_path, step) for step in (1, 2)]:
        damage(path)
    warnings: list[str] = []
    with pytest.raises(CheckpointError):
        find_checkpoint(tmp_path, warnings.append)
    assert {name for name in list_names(tmp_path) for line in warnings if name in line} >= {
        "step-00000001.pt",
        "step-00000002.pt",
    }


def test_last_or_best_alone_are_found(tmp_path: Path) -> None:
    save(tmp_path, 4, is_best=True)
    (tmp_path / "step-00000004.pt").unlink()
    assert find_step(tmp_path) == 4
    (tmp_path / "last.pt").unlink()
    assert find_step(tmp_path) == 4


def test_a_checkpoint_copied_without_its_checksum_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, 4)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(path, tmp_path / "elsewhere" / "mine.pt")
    assert read_checkpoint(tmp_path / "elsewhere" / "mine.pt")["step"] == 4


def test_weights_alone_cannot_be_resumed(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="--pretrained"):
        read_checkpoint(tmp_path / "weights.pt")


# Faults


@contextmanager
def intercepting(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], before: Callable[[int, str], None]
) -> Iterator[list[str]]:
    """Calls `before(number of the call, name)` in front of each call of some functions; yields the names called."""
    called: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            called.append(name)
            before(len(called) - 1, name)
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in names:
            module, attribute = CALLS[name]
            patch.setattr(module, attribute, wrap(name, getattr(module, attribute)))
        yield called


def check_survival(folder: Path, *, old: int, new: int, old_best: int) -> int:
    """What must hold after anything went wrong between the checkpoints `old` and `new`; the step that is found."""
    assert temporary_files(folder) == []
    step = find_step(folder)
    assert step in (old, new)
    assert read_checkpoint(folder / "last.pt")["step"] in (old, new)
    assert read_checkpoint(folder / "best.pt")["step"] in (old_best, new)
    return step


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("keep", [1, 3])
def test_an_error_at_any_call_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, keep: int
) -> None:
    """The disk is full at the first, second, … call of a function."""
    folder = tmp_path / "template"
    for step in (1, 2):
        save(folder, step, is_best=step == 1, keep=keep)
    with intercepting(monkeypatch, (name,), lambda number, called: None) as called:
        save(Path(shutil.copytree(folder, tmp_path / "count")), 3, is_best=True, keep=keep)
    assert called
    outcomes = set()
    for fail_at in range(len(called)):
        place = Path(shutil.copytree(folder, tmp_path / f"fail-{fail_at}"))

        def fail(number: int, called: str, fail_at: int = fail_at) -> None:
            if number == fail_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with intercepting(monkeypatch, (name,), fail):
            try:
                save(place, 3, is_best=True, keep=keep)
                raised = False
            except RunFolderError as error:
                raised = True
                assert os.strerror(errno.ENOSPC) in str(error)
        outcomes.add(raised)
        found = check_survival(place, old=2, new=3, old_best=1)
        if not raised:
            assert found == 3
            assert read_checkpoint(place / "last.pt")["step"] == read_checkpoint(place / "best.pt")["step"] == 3
        save(place, 4, is_best=True, keep=keep)  # once there is room again, all is as if nothing had been
        assert find_step(place) == 4
        assert len(list(place.glob("step-*.pt"))) <= keep
    assert outcomes == ({False} if name == "os.link" else {True})


def test_a_disk_that_is_full_at_any_byte_loses_nothing(tmp_path: Path) -> None:
    """The system itself refuses to let a file grow beyond a size: a part of a write comes through before that."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = save(tmp_path, 1, is_best=True).stat().st_size
    for limit in [*range(0, size, max(1, size // 40)), size - 1]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(RunFolderError) as caught:
                save(tmp_path, 2, is_best=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert len(str(caught.value).splitlines()) == 1
        assert f": {os.strerror(errno.EFBIG)}; " in str(caught.value)  # torch does not say why it fails
        assert check_survival(tmp_path, old=1, new=1, old_best=1) == 1
    save(tmp_path, 2, is_best=True)
    assert find_step(tmp_path) == 2


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), RuntimeError("write failed: pos 1\nmore")])
def test_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    save(tmp_path, 1, is_best=True)

    def write_half(content: Any, file: IO[bytes]) -> None:
        file.write(b"PK\x03\x04 half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", write_half)
        with pytest.raises(RunFolderError) as caught:
            save(tmp_path, 2, is_best=True)
    assert len(str(caught.value).splitlines()) == 1
    assert check_survival(tmp_path, old=1, new=1, old_best=1) == 1


def test_a_kill_at_any_call_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the folder in front of every call is what a kill at that moment would leave behind."""
    folder = tmp_path / "run"
    for step in (1, 2):
        save(folder, step, is_best=step == 1, keep=1)
    copies: list[Path] = []

    def copy(number: int, name: str) -> None:
        copies.append(Path(shutil.copytree(folder, tmp_path / f"copy-{number}")))

    with intercepting(monkeypatch, tuple(CALLS), copy):
        save(folder, 3, is_best=True, keep=1)
    assert len(copies) > 5
    found = []
    for place in copies:
        found.append(find_step(place))
        assert read_checkpoint(place / "last.pt")["step"] in (2, 3)
        assert read_checkpoint(place / "best.pt")["step"] in (1, 3)
        save(place, 4, is_best=True, keep=1)  # what the kill left lying about is in nobody's way
        assert find_step(place) == 4
    assert found == sorted(found)
    assert (found[0], find_step(folder)) == (2, 3)


def test_interrupted_from_the_keyboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def interrupt(content: Any, file: IO[bytes]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert temporary_files(tmp_path) == []
    assert find_step(tmp_path) == 1


# Others read them


def test_torch_loads_it_without_an_allow_list(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    assert not [known for known in torch.serialization.get_safe_globals() if "cspnet" in str(known)]
    content = torch.load(path, weights_only=True)
    assert torch.equal(content["state_dict"]["weight"], make_content(3)["state_dict"]["weight"])


def test_timm_loads_it(tmp_path: Path) -> None:
    import timm
    from timm.models import load_checkpoint

    torch.manual_seed(0)
    ours = cspnet.create_model("cspresnet50", num_classes=10).eval()
    content = {"format": FORMAT, "arch": "cspresnet50", "state_dict": ours.state_dict(), "state_dict_ema": None}
    path = save_checkpoint(tmp_path, content, step=1, is_best=False, keep=1)
    theirs = timm.create_model("cspresnet50", num_classes=10).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = theirs(images)
        load_checkpoint(theirs, str(path))
        after, expected = theirs(images), ours(images)
    assert not torch.allclose(before, expected, atol=1e-3)
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
