"""What becomes of a job whose process is killed or stopped."""

import subprocess

import pytest

from decar.cli import launch
from decar.errors import LostProcessError


@pytest.fixture
def child():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_killed_process_is_named_in_place_of_the_error_of_the_exchange(child):
    child.kill()
    with (
        pytest.raises(LostProcessError, match=rf"process 1 \(pid {child.pid}\) .* killed by SIGKILL. To go on") as told,
        launch._lost_child_named([child]),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    assert told.value.status == 3


def test_an_error_of_our_own_stays_what_it_is(child):
    with pytest.raises(RuntimeError, match="ours"), launch._lost_child_named([child]):
        raise RuntimeError("ours")
