"""A replica of each corpus, made when it is first asked for."""

import pytest

from tests.corpora.replicas import REPLICAS, Sounds


@pytest.fixture(scope="session")
def sounds():
    return Sounds()


@pytest.fixture(scope="session")
def replica(tmp_path_factory, sounds):
    made = {}

    def get(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            REPLICAS[name](made[name], sounds)
        return made[name]

    return get


@pytest.fixture
def fresh(tmp_path, sounds):
    """A replica to break."""

    def get(name):
        REPLICAS[name](tmp_path / name, sounds)
        return tmp_path / name

    return get
