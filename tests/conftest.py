"""Tests compute on the CPU wherever they run, for they compare bits; those of tests/test_cuda.py alone may see a GPU."""

import gc
import os
import sys
from collections.abc import Generator, Iterator

import pytest

if "ROI_CUDA" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays to the end: to look through it for garbage takes a second each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left alone with one of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def threads_of_pytorch() -> Iterator[None]:
    """Commands set them for their process: those of one file's tests are not those of the next one's."""
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if before is not None:
        sys.modules["torch"].set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def no_public_certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests speak to this machine alone, and every client would read the list of public authorities for 50 ms; a model by its
    hub id (tests/test_models.py) comes from elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        if "ROI_MODEL" not in os.environ:
            patch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("certificates")))
        yield
