"""A real, tiny pairs folder of drawn faces, prepared by the code that prepares real ones."""

from pathlib import Path

import pytest
from drawn_pairs import MOVES, PEOPLE, TINY, draw_pair, write_rows

from training.config import RunConfig
from training.data.prepare import Prepared, prepare


@pytest.fixture(scope="session")
def tiny_config() -> RunConfig:
    return TINY


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each of six people makes each expression once, and once none."""
    folder = tmp_path_factory.mktemp("pairs")
    write_rows(folder, [draw_pair(folder, who, label) for who in range(PEOPLE) for label in MOVES])
    return folder


@pytest.fixture(scope="session")
def prepared(pairs_folder: Path, tiny_config: RunConfig) -> Prepared:
    return prepare(pairs_folder, tiny_config.spec(), workers=1)
