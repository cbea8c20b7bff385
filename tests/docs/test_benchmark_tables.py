"""Benchmark results: the documentation shows what their files say, and those older than their code are named."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from wavelet_core.config import ConfigurationError
from wavelet_train.measurement import MODELS, Measurement, measurement

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_documentation_are_those_of_the_results(tables):
    shown = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text("utf-8")
        assert tables.remake(page) == text, "run: python benchmarks/tables.py"
        shown += [name for _, name, _ in tables.MARKED.findall(text)]
    assert sorted(shown) == sorted(path.stem for path in tables.RESULTS.glob("*.json"))


def test_a_result_is_stale_once_its_code_has_changed(tables, tmp_path, monkeypatch):
    (tmp_path / "code.py").write_text("x = 1\n")
    monkeypatch.setattr("wavelet_train.measurement.ROOT", tmp_path)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    fresh = measurement("wavelet bench decode", {"speed": 3.0}, "fast", ["*.py", "nothing/*"])
    fresh.write(tmp_path / "results" / "decode.json")
    assert Measurement.read(tmp_path / "results" / "decode.json") == fresh
    assert list(fresh.code) == ["code.py"] and tables.stale() == []
    (tmp_path / "code.py").write_text("x = 2\n")
    assert [row[::2] for row in tables.stale()] == [("decode", "code.py")]
    (tmp_path / "code.py").unlink()
    assert fresh.stale(tmp_path) == ["code.py"]


def test_a_measurement_says_what_where_and_of_which_code():
    found = measurement("wavelet bench decode demo", {"speed": 3.0}, None, MODELS)
    assert found.versions["torch"] and found.machine and found.date.startswith("2")
    assert "packages/wavelet-core/src/wavelet_core/block.py" in found.code and found.stale() == []
    assert str(ROOT) not in json.dumps(found.figures) + found.machine + "".join(found.code)


def test_results_stand_in_a_page_as_text_or_as_a_table(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    text = Measurement("wavelet bench x", "2026-11-26", "a machine", "abc", {}, "measured", {}, {}, "speed  3")
    text.write(tmp_path / "x.json")
    rows = {"columns": ["a", "b"], "rows": [["1", ""], ["2", "3"]]}
    replace(text, source="transcribed", figures=rows, text=None).write(tmp_path / "y.json")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- result x -->\nold\n<!-- /result -->\n<!-- result y -->\n<!-- /result -->\nafter\n")
    made = tables.remake(page)
    assert "```text\nspeed  3\n```" in made and "old" not in made and "`wavelet bench x`, 2026-11-26" in made
    assert "| a | b |\n| --- | --- |\n| 1 | |\n| 2 | 3 |\n" in made and "transcribed" in made
    page.write_text(made)
    assert tables.remake(page) == made and made.startswith("before") and made.endswith("after\n")
    page.write_text("<!-- result z -->\n<!-- /result -->\n")
    with pytest.raises(ConfigurationError, match=r"page\.md.*z\.json"):
        tables.remake(page)


def test_what_a_script_prints_is_kept(tables, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    script = "print('a table'); print('{\"speed\": 3}')"
    tables.record("x", [sys.executable, "-c", script])
    kept = Measurement.read(tmp_path / "x.json")
    assert kept.figures == [{"speed": 3}] and kept.text == "a table" and kept.command.startswith("python -c")
    assert "a table" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="status 3"):
        tables.record("y", [sys.executable, "-c", "raise SystemExit(3)"])
    assert not (tmp_path / "y.json").exists()
    (tmp_path / "z.json").write_text('{"command": 1}')
    with pytest.raises(ConfigurationError, match=r"z\.json"):
        Measurement.read(tmp_path / "z.json")
