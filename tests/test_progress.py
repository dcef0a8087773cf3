"""How far a job is: a bar on a terminal, plain lines elsewhere, and a log in short lines."""

import io
import logging
import os
from types import SimpleNamespace

import pytest

from vasomim_hf import progress
from vasomim_hf.progress import LONGEST_LINE, Progress, TrainingProgress, set_up_logging, shorten_values


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2


@pytest.fixture
def terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((100, 30)))
    return stream


@pytest.fixture
def at_once(monkeypatch):
    """Plain lines without a pause between them."""
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)


def run_all(num_steps: int, first_step: int = 0, is_shown: bool = True) -> None:
    with TrainingProgress(num_steps, first_step, frames_per_step=8, is_shown=is_shown) as bar:
        for _ in range(first_step, num_steps):
            bar.update()
            bar.show({"loss": 0.25})


def test_a_terminal_gets_a_bar_and_the_log_nothing(terminal, at_once, caplog):
    caplog.set_level("INFO")
    run_all(4)
    last = terminal.getvalue().rstrip().rpartition("\r")[2]
    assert last.startswith("training: 100%|") and "4/4 steps, " in last and "frames/s" in last and "loss=0.25" in last
    assert caplog.messages == []


def test_elsewhere_plain_lines_with_speed_and_time_left_go_to_the_log(at_once, capsys, caplog):
    caplog.set_level("INFO")
    run_all(4, first_step=2)
    assert capsys.readouterr().err == ""
    # not one for the two steps that were done before
    assert caplog.messages[0].startswith("training: 3/4 steps") and "left" in caplog.messages[0]
    assert "training: 4/4 steps" in caplog.messages[-1] and "frames/s" in caplog.messages[-1]
    assert all(text.isprintable() for text in caplog.messages)


def test_plain_lines_come_less_and_less_often(at_once, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 1.0)
    monkeypatch.setattr(progress, "LONGEST_PLAIN_INTERVAL", 6.0)
    bar = Progress(what="training", total=9)
    bar.n, pauses = 1, []
    for _ in range(4):
        pauses.append(bar.mininterval)
        bar.display()
    assert pauses == [1.0, 2.0, 4.0, 6.0]


def test_a_terminal_without_columns_gets_plain_lines(terminal, at_once, monkeypatch, caplog):
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((0, 0)))
    caplog.set_level("INFO")
    run_all(2)
    assert terminal.getvalue() == "" and "training: 2/2 steps" in caplog.messages[-1]


@pytest.mark.parametrize("hidden", [{"is_shown": False}, {"RANK": "1"}])
def test_other_processes_and_those_who_want_none_see_nothing(hidden, terminal, at_once, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("RANK", hidden.get("RANK", "0"))
    run_all(3, is_shown=hidden.get("is_shown", True))
    assert terminal.getvalue() == "" and caplog.messages == []


def test_items_are_passed_on():
    assert list(Progress([3, 1], what="reading")) == [3, 1]
    assert list(Progress(iter([3, 1]), what="reading", total=2)) == [3, 1]


def test_values_that_find_no_room_are_left_to_the_full_log():
    values = {f"some_long_metric_{number}": 1 / 3 for number in range(12)}
    line = shorten_values("epoch 3/40", values)
    assert line.startswith("epoch 3/40: some long metric 0 0.3333, some long metric 1") and line.endswith(", ...")
    assert len(line) + len("11-27 14:03:12 ") <= LONGEST_LINE
    assert shorten_values("epoch 3/40", {}) == "epoch 3/40"


def test_the_log_has_time_and_message_and_of_warnings_the_level(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", logging.WARNING)
    set_up_logging()
    logging.getLogger("vasomim_hf.engine.loop").info("epoch 1/3")
    logging.getLogger("vasomim_hf.engine.loop").warning("a mask is empty")
    logging.getLogger("other").error("it broke")
    texts = [line[len("11-27 14:03:12 ") :] for line in stream.getvalue().splitlines()]
    assert texts == ["epoch 1/3", "warning: a mask is empty", "error: other: it broke"]


@pytest.mark.parametrize(("rank", "level"), [("0", logging.INFO), ("1", logging.WARNING)])
def test_of_several_processes_the_first_one_logs(rank, level, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", logging.WARNING)
    set_up_logging()
    assert root.level == level


def test_the_log_is_written_above_a_bar(terminal, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", logging.WARNING)
    set_up_logging()
    with TrainingProgress(2, 0, frames_per_step=8, is_shown=True) as bar:
        bar.update()
        logging.getLogger("vasomim_hf").info("epoch 1/2")
        bar.update()
    lines = terminal.getvalue().split("\n")
    assert any(line.endswith("epoch 1/2") and "training" not in line.rpartition("\r")[2] for line in lines)
