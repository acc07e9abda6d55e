"""What all tests share: one thread per process, their own and those that they start; no files left
outside pytest's folders."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator

import pytest
import torch

from data.tokenizers import TiktokenTokenizer
from tests import own_parts
from tests.prepared import SHARED


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--random_kills",
        type=int,
        default=1,
        help="tries for each way to spread a model in tests/integration/test_random_kills.py",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Set one thread: tiny models are slower on several, and the order of sums depends on their
    number. Let Ctrl-C reach the tests of signals and the processes that they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["OMP_NUM_THREADS"] = "1"
    if "NANOARCH_CACHE_DIR" not in os.environ:  # the workers of pytest-xdist inherit it
        cache = tempfile.TemporaryDirectory(prefix="nanoarch-tests-")
        config.add_cleanup(cache.cleanup)
        os.environ["NANOARCH_CACHE_DIR"] = cache.name
    torch.set_num_threads(1)


@pytest.fixture
def gpt2(monkeypatch: pytest.MonkeyPatch) -> TiktokenTokenizer:
    """GPT-2's tokenizer, from a cache that is there or not."""
    cache = SHARED / "tiktoken_cache"
    if not cache.is_dir():
        pytest.skip(f"no cached vocabulary of gpt2 in {cache}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    return TiktokenTokenizer("gpt2")


@pytest.fixture(autouse=True)
def _own_parts() -> Iterator[None]:
    """What a test registers is gone after it."""
    with own_parts.forgotten():
        yield


@pytest.fixture(autouse=True)
def _matmul_precision() -> Iterator[None]:
    """What a run sets for its process holds for no other test."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)
