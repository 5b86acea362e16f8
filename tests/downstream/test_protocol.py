import pytest
from omegaconf import OmegaConf

from decar.cli.config import conf_dir
from decar.downstream.protocol import PaperProtocol, Protocol, SearchProtocol, check_whole
from decar.errors import ConfigError


@pytest.mark.parametrize("kind", [PaperProtocol, SearchProtocol])
def test_configuration_lists_the_numbers_of_the_class(kind: type[Protocol]) -> None:
    numbers = OmegaConf.to_container(OmegaConf.load(conf_dir() / "protocol" / f"{kind.name}.yaml"))
    assert numbers.pop("_target_") == f"decar.downstream.{kind.__name__}"
    assert numbers.keys() == vars(kind()).keys()
    assert kind(**numbers) == kind()


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        *((kind, key, value) for kind in (PaperProtocol, SearchProtocol) for key in ("batch_size", "max_epochs")
          for value in (0, -1, 2.0, "5", True, None)),
        *((PaperProtocol, "lr", value) for value in (0, -1e-3, "fast", float("nan"), float("inf"), None, False)),
        *((SearchProtocol, key, value) for key in ("strengths", "learning_rates")
          for value in ([], (), "0.1", 0.1, None, [0.1, 0], ["x"], [float("nan")])),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(kind: type[Protocol], key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^protocol\.{key}=.*: not allowed; give ") as caught:
        kind(**{key: value})
    assert "\n" not in str(caught.value)


def test_message_says_what_was_given_and_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"^protocol\.max_epochs=0: not allowed; give a whole number, 1 or more$"):
        PaperProtocol(max_epochs=0)
    with pytest.raises(ConfigError, match=r"^protocol\.strengths=-1: not allowed; give a number above 0$"):
        SearchProtocol(strengths=[1, -1])


def test_smallest_allowed_values() -> None:
    assert PaperProtocol(lr=1, batch_size=1, max_epochs=1).max_epochs == 1
    assert SearchProtocol(strengths=[1]).strengths == (1,)
    check_whole("mode.num_workers", 0, 0)
