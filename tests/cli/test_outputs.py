"""Results go where they are to go, and take the place of nothing but earlier results."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cspnet.cli.outputs import check_outputs
from cspnet.errors import UserError
from cspnet.runtime.files import write_output

OTHERS = {"weights": b"PK\x03\x04 a checkpoint", "a page": b"# cspnet\n\nTrain", "a picture": b"\xff\xd8\xff\xe0"}


@pytest.mark.parametrize("flag", ["--json", "--markdown"])
@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_result_is_not_overwritten(flag: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(OTHERS[what])
    with pytest.raises(UserError, match="holds something else"):
        check_outputs({flag: file})
    assert file.read_bytes() == OTHERS[what]


@pytest.mark.parametrize("content", [b"", b'{"acc1": 3}', b"[1]"])
def test_an_earlier_result_may_be(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    file.write_bytes(content)
    check_outputs({"--json": file, "--markdown": None})


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("{}")
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "real.json")
    write_output(link, b'{"new": 1}')
    assert link.is_symlink()
    assert (tmp_path / "real.json").read_text() == '{"new": 1}'


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_gets_the_bytes(tmp_path: Path) -> None:
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    check_outputs({"--json": pipe})
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    reader.start()
    write_output(pipe, b"{}")
    reader.join(30)
    assert heard == [b"{}"]
    assert not pipe.is_file()
