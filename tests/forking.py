"""`python3 SCRIPT` as a fork of the process that runs the tests, in which everything is imported: 0.1 s, not 2.5 s.

What a fork starts in its turn with `subprocess` is forked too, such as the ranks that torchrun starts. Each is a child
of its own starter, with its own session, signals, descriptors, environment, and random state, as after exec; what it
has in common with the tests are the loaded modules, and so the hashes of strings. Its end runs what `atexit` holds.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import logging
import multiprocessing.process
import multiprocessing.util
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np
import torch
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
from torch.distributed.elastic.rendezvous import dynamic_rendezvous

from cspnet.runtime.heap import give_back_freed_memory

__all__ = ["Forked", "list_forks"]

_LOADED_FIRST = (
    *("cspnet.cli.train_job", "cspnet.cli.validate_job", "torch.distributed.run", "torch._dynamo"),
    *("timm.data", "timm.models", "timm.optim", "torchvision"),
)
"""Imported once, ahead of the first fork: what runs import sooner or later."""

_register = tempfile.TemporaryFile("a+b", buffering=0)  # noqa: SIM115
"""A line for each fork, and for each process forked by one: its number, its words, the variables it was given."""

_kept: list[object] = []
"""The streams of who forked: as they went, they would write what waits in them."""


class Forked(subprocess.Popen[Any]):
    """Popen, in which a command of this Python that runs a script or a module is forked; others start as ever."""

    def __init__(self, args: Any, **others: Any) -> None:
        if (words := _words_of(args)) is not None:
            for name in _LOADED_FIRST:
                importlib.import_module(name)
            give_back_freed_memory()
            prepare: Callable[[], object] = others.pop("preexec_fn", None) or (lambda: None)
            environment = dict(os.environ if (given := others.pop("env", None)) is None else given)
            # preexec_fn is called last before exec, when the rest is done; from this one there is no return.
            others["preexec_fn"] = lambda: _become(words, environment, prepare)
        super().__init__(args, **others)


def list_forks(folder: Path, variable: str = "") -> list[int]:
    """The numbers of all that were forked with a folder among their words and (NAME=VALUE) a variable, ended or not."""
    lines = os.pread(_register.fileno(), os.fstat(_register.fileno()).st_size, 0).splitlines()
    return [
        number
        for number, words, variables in map(json.loads, lines)
        if any(str(folder) in word for word in words) and (not variable or variable in variables)
    ]


def _words_of(args: Any) -> list[str] | None:
    """What stands behind `python3` in a command; None if that is no script or module, or there are flags but -u."""
    if not isinstance(args, Sequence) or isinstance(args, str) or args[0] != sys.executable:
        return None
    words = [str(word) for word in args[1:]]
    script = words[words[:1] == ["-u"] :]
    return words if script and (script[0] == "-m" or not script[0].startswith("-")) else None


def _become(words: list[str], environment: Mapping[str, str], prepare: Callable[[], object]) -> NoReturn:
    """In a forked process: be `python3 WORDS`, and end."""
    code = 1
    try:
        gc.freeze()  # what the tests hold is neither looked through nor finalized here
        unbuffered, words = words[0] == "-u" or "PYTHONUNBUFFERED" in environment, words[words[0] == "-u" :]
        prepare()
        _renew_signals()
        _renew_streams(unbuffered)
        _forget_descriptors()
        variables = [f"{name}={value}" for name, value in environment.items() if os.environ.get(name) != value]
        os.environ.clear()
        os.environ.update(environment)
        _renew_libraries()
        note = json.dumps([words, variables])[1:]
        os.register_at_fork(after_in_child=lambda: _sign(note))
        _sign(note)
        subprocess.Popen = subprocess_handler.Popen = Forked
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, os.getcwd())
            sys.modules.pop(words[1], None)
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            _run_file(os.path.abspath(words[0]))
        code = 0
    except SystemExit as end:
        code = _code_of(end)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        _end(code)


def _run_file(file: str) -> None:
    """Not with runpy, which changes sys.argv."""
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    main.__file__ = file
    exec(compile(Path(file).read_bytes(), file, "exec"), vars(main))


def _sign(note: str) -> None:
    os.write(_register.fileno(), f"[{os.getpid()}, {note}\n".encode())


def _forget_descriptors() -> None:
    """All but the standard ones become the null device: closed, their numbers would be given out again.

    Popen waits until its pipe among them is closed.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/dev/fd"):
        if int(name) > 2 and int(name) not in (null, _register.fileno()):
            with contextlib.suppress(OSError):  # that of the listing
                os.fstat(int(name))
                os.dup2(null, int(name), inheritable=False)


def _renew_streams(unbuffered: bool) -> None:
    _kept.extend((sys.stdin, sys.__stdin__, sys.stdout, sys.__stdout__, sys.stderr, sys.__stderr__))
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1 if unbuffered else -1, closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115


def _renew_signals() -> None:
    """As Python has them when it starts: what is ignored stays ignored."""
    faulthandler.disable()
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) not in (None, signal.SIG_IGN):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _renew_libraries() -> None:
    """What pytest and the tests before have set in loaded modules."""
    warnings.resetwarnings()
    warnings.showwarning = _show_warning
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)
    warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)
    threading.excepthook = threading.__excepthook__
    sys.unraisablehook = sys.__unraisablehook__
    atexit._clear()
    multiprocessing.process._children.clear()
    multiprocessing.util._finalizer_registry.clear()
    atexit.register(multiprocessing.util._exit_function)
    random.seed()  # as those of a new process, no two of which draw alike
    np.random.seed()
    torch.seed()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    # torchrun names each of its events by a look through all frames and modules (inspect.stack). With all that are here
    # it takes so long that heartbeats come too late.
    dynamic_rendezvous.get_method_name = lambda depth=2: ""


def _show_warning(
    message: Warning | str,
    kind: type[Warning],
    file: str,
    line: int,
    out: TextIO | None = None,
    text: str | None = None,
) -> None:
    """On stderr: pytest keeps them."""
    (out or sys.stderr).write(warnings.formatwarning(message, kind, file, line, text))


def _code_of(end: SystemExit) -> int:
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
    return end.code if isinstance(end.code, int) else int(end.code is not None)


def _end(code: int) -> NoReturn:
    """As Python ends: threads, atexit, what is left in the streams."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody listens; what Python ends with then
            code = 120
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
