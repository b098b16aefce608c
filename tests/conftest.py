"""What every test may rely on: no network, one thread, repeatable examples, and PEFT as its authors left it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before transformers or huggingface_hub is imported: they read it once.
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# No deadline: the first example of a test pays for imports and for the operator's registration.
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "explore")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, by name, what needs a CUDA device where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def audiolora_data() -> Path:
    """Folder of the data sets that tests may read (`spoken_digits/`, `ett/`), named by AUDIOLORA_DATA."""
    folder = os.environ.get("AUDIOLORA_DATA")
    if not folder:
        pytest.skip("AUDIOLORA_DATA is not set: it names the folder with spoken_digits/ and ett/ (data/README.md)")
    if not Path(folder).is_dir():
        pytest.fail(f"AUDIOLORA_DATA={folder} is not a folder; unset it or name one (data/README.md)")
    return Path(folder)


@pytest.fixture(autouse=True)
def peft_as_found() -> Iterator[None]:
    """Undo `audiolora.enable()` after the test, so that none depends on which ran before it."""
    yield
    # A test that never imported the integration cannot have enabled it, and is spared the import.
    integration = sys.modules.get("audiolora.integration")
    if integration is not None:
        integration.disable()
