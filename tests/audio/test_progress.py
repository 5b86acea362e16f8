import pytest

from decar.audio import progress
from decar.audio.progress import progress_bar


def test_plain_lines_when_it_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress_bar("log-mels", 10) as advance:
        for _ in range(10):
            advance(1)
    out = capsys.readouterr()
    assert out.out == ""
    lines = out.err.splitlines()
    assert lines[0] == "log-mels: 2 of 10 (20%), about 48 s left"
    assert len(lines) == 4  # one line in 10 s, none for the end


def test_the_first_steps_which_load_things_do_not_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0, 400, 412, 424, 430])
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress_bar("log-mels", 10) as advance:
        for steps in (1, 2, 2, 5):
            advance(steps)
    assert capsys.readouterr().err.splitlines() == [
        "log-mels: 1 of 10 (10%)",
        "log-mels: 3 of 10 (30%), about 42 s left",  # 2 in 12 s
        "log-mels: 5 of 10 (50%), about 30 s left",
    ]


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress_bar("log-mels", 3) as advance:
        advance(3)
    assert "3/3" in capsys.readouterr().err


def test_nothing_when_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("log-mels", 2, enabled=False) as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")
