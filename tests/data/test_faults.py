"""Faults of single items are collected, counted and named."""

import json
import logging
from pathlib import Path

import pytest

from vasomim_hf.data.faults import Fault, FaultReport


def test_a_report_keeps_names_reasons_and_kinds_of_errors():
    report = FaultReport([("old", "was there")])
    report.add("a.png", "is\n  no image")
    report.add("b.png", OSError("truncated"))
    report.extend([Fault("c", "of a worker")])
    assert [tuple(fault) for fault in report] == [
        ("old", "was there"),
        ("a.png", "is no image"),
        ("b.png", "OSError: truncated"),
        ("c", "of a worker"),
    ]


def test_the_log_counts_all_and_names_the_first_five(caplog: pytest.LogCaptureFixture):
    report = FaultReport()
    report.log("frames", 9)
    assert not caplog.records
    for number in range(7):
        report.add(f"frame {number}", "is black")
    with caplog.at_level(logging.WARNING):
        report.log("frames", 9)
    (record,) = caplog.records
    assert "7 faults in 9 frames" in record.message
    assert "frame 4: is black; and 2 more" in record.message
    assert "frame 5" not in record.message


def test_the_written_report_holds_every_fault(tmp_path: Path):
    report = FaultReport()
    for number in range(7):
        report.add(f"frame {number}", "is black")
    report.write(tmp_path / "faults.json")
    content = json.loads((tmp_path / "faults.json").read_text())
    assert content == [{"name": f"frame {number}", "reason": "is black"} for number in range(7)]
    assert [path.name for path in tmp_path.iterdir()] == ["faults.json"]
