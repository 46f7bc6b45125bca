"""Silent in a library, plain lines in a log, bars on a terminal."""

import io
from collections.abc import Iterator
from itertools import count

import pytest

from isthmus import bars, progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is on, and each look at the clock takes two seconds."""
    ticks = count(step=2)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))
    progress.enable()
    yield
    progress.disable()


def items(n: int) -> Iterator[int]:
    yield from range(n)


def test_a_library_is_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "PATIENCE", 0)
    assert list(progress.track(items(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("clock")
def test_a_log_gets_lines_on_stderr(capsys: pytest.CaptureFixture[str]):
    list(progress.track(range(20), "statistics", unit="batches"))
    out, err = capsys.readouterr()
    assert out == ""
    first, *_, last = err.splitlines()
    assert first.startswith("statistics: 1/20 batches, ")
    assert first.endswith(" left")
    assert last.startswith("statistics: 20/20 batches, ")
    assert ", took " in last
    assert len(err.splitlines()) < 20


@pytest.mark.usefixtures("clock")
def test_what_is_quick_is_not_mentioned(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "PATIENCE", 1e9)
    list(progress.track(range(5), "counting"))
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("clock")
def test_bytes_are_written_as_people_read_them(capsys: pytest.CaptureFixture[str]):
    with progress.task("writing", total=4_000_000, unit="bytes") as advance:
        advance(1_000_000)
        advance(3_000_000)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("writing: 1.0 MB/4.0 MB, ")
    assert last.startswith("writing: 4.0 MB/4.0 MB, ")


@pytest.mark.usefixtures("clock")
def test_an_unknown_total_promises_nothing(capsys: pytest.CaptureFixture[str]):
    list(progress.track(items(4), "sweeping", unit="sweeps"))
    err = capsys.readouterr().err
    assert "4 sweeps" in err
    assert "left" not in err


@pytest.mark.usefixtures("clock")
def test_a_terminal_gets_bars_that_share_one_board(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    for _ in progress.track(range(2), "models"):
        list(progress.track(range(3), "batches"))
    assert "models" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    assert bars._board is None, "the board is closed with its last bar"


@pytest.mark.usefixtures("clock")
def test_an_error_inside_closes_the_board(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with pytest.raises(KeyError), progress.task("writing", total=3) as advance:  # noqa: PT012
        advance(1)
        raise KeyError
    assert bars._board is None
