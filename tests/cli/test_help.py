"""--help, --help-all, and what a shell completes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cspnet
from cspnet.cli import train, validate
from cspnet.errors import UserError
from cspnet.recipe.aliases import ALIASES, COMMON_KEYS, ELSEWHERE
from cspnet.recipe.load import field_table
from tests.conftest import ROOT


def read_help(flag: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        train.create_parser().parse_all([flag])
    assert ended.value.code == 0
    return capsys.readouterr().out


def words(text: str) -> str:
    return " ".join(text.split())


def test_help_has_the_usual_settings_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    shown = set(re.findall(r"--([a-z]+\.\w+)", read_help("--help", capsys)))
    assert shown == set(COMMON_KEYS)


def test_help_all_has_every_setting_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    text = words(read_help("--help-all", capsys))
    for key, field in field_table().items():
        assert re.search(rf"--{re.escape(key)}[ ,]", text), key
        assert words(field.help) in text, key
    assert all(flag in text for flag in ALIASES)
    assert "Peak learning rate. [0.1]" in text
    assert "[null]" in text and "[None]" not in text


def test_a_flag_that_help_leaves_out_is_taken() -> None:
    args = train.create_parser().parse_all(["--checkpoint.keep_best", "3"])
    assert args.overrides == {"checkpoint.keep_best": 3}


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; sys.argv = ['train.py', '--help-all']\nfrom cspnet.cli.train import main\ntry: main()\n"
    code += "finally: print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == "False\n"


def complete(script: Path, *typed: str) -> list[str]:
    """What bash offers for the last word of a command line."""
    line = " ".join(f"'{word}'" for word in typed)
    function = typed[0].replace("cspnet-", "_shtab_cspnet_")
    lines = [f"source {script}", f"COMP_WORDS=({line})", f"COMP_CWORD={len(typed) - 1}", function]
    lines.append('printf "%s\\n" "${COMPREPLY[@]}"')
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("door", [train, validate])
def test_bash_completes(door: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as ended:
        door.create_parser().parse_all(["--print-completion", "bash"])  # type: ignore[attr-defined]
    assert ended.value.code == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    command = "cspnet-train" if door is train else "cspnet-validate"
    assert complete(script, command, "--model", "csresnext50_o") == ["csresnext50_omega"]
    if door is validate:
        assert complete(script, command, "--conf") == ["--confusion"]
    else:
        assert complete(script, command, "--optim.lr") == ["--optim.lr", "--optim.lr_base_size"]
        assert complete(script, command, "--sched", "co") == ["cosine", "constant"]


def test_another_shell_is_one_line() -> None:
    with pytest.raises(UserError, match="unknown shell; there are bash, zsh, tcsh"):
        train.create_parser().parse_all(["--print-completion", "fish"])


@pytest.mark.parametrize("door", [train, validate])
def test_the_version_is_that_of_the_package(door: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        door.create_parser().parse_all(["--version"])  # type: ignore[attr-defined]
    assert capsys.readouterr().out == f"cspnet {cspnet.__version__}\n"


@pytest.mark.parametrize("flag", ELSEWHERE)
def test_flags_of_others_are_answered_with_ours(flag: str) -> None:
    parser = train.create_parser()
    options = {option for action in parser._actions for option in action.option_strings}
    assert flag not in options
    with pytest.raises(UserError) as told:
        parser.parse_all([flag, "1"])
    assert ELSEWHERE[flag] in str(told.value)
    assert set(re.findall(r"--[a-z][\w.-]*", ELSEWHERE[flag])) <= options
