"""What every test shares: the device asked for, one thread a process, and annotations of shapes checked at run time."""

import functools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import install_import_hook


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the arguments of functions that annotate shapes. Other annotations are not enforced: a caller's wrong type must
    meet our own sentence. A function being compiled is left alone, for a compiler cannot trace the checks."""
    if not any("jaxtyping" in repr(hint) for hint in function.__annotations__.values()):
        return function
    checked = beartype(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (function if torch.compiler.is_compiling() else checked)(*args, **kwargs)

    return call


install_import_hook("nonesuch", f"{__name__}.check_shapes")  # before the first import of nonesuch; JAXTYPING_DISABLE=1 omits it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="the device that tests with a `device` argument use: cpu, cuda, cuda:1")


def pytest_configure(config: pytest.Config) -> None:
    os.environ["NONESUCH_CACHE"] = tempfile.mkdtemp(prefix="nonesuch-tests-")  # never a person's own cache
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell's background jobs begin, and what they start
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each, or the processes wait for one another
        torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--device") == "cpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an accelerator: pytest --device cuda"))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["NONESUCH_CACHE"], ignore_errors=True)
