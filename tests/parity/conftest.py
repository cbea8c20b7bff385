"""The parity cases: what the original computed for 45 small configurations (three of them are in this repository)."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent / "cases"
ALL = Path(__file__).parents[3] / "shared" / "parity"
CASES = sorted(path.parent.name for path in (ALL if ALL.is_dir() else HERE).glob("*/expected.safetensors"))


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES)


@pytest.fixture
def directory(case):
    return (ALL if ALL.is_dir() else HERE) / case


@pytest.fixture(scope="session")
def all_cases():
    if not ALL.is_dir():
        pytest.skip("needs all 45 parity cases in ../shared/parity; the three in this repository are checked elsewhere")
    return ALL
