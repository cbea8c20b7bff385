"""The parity cases: what the original computed for small configurations.

Ten travel with the repository, in cases/: among them every wavelet, bypass, mixer and memory that the original has, and
the headline's options. Where ../shared/parity is beside the repository, all 45 are checked in their stead.
"""

from pathlib import Path

import pytest

HERE = Path(__file__).parent / "cases"
ALL = Path(__file__).parents[3] / "shared" / "parity"
CHECKED = ALL if ALL.is_dir() else HERE
CASES = sorted(path.parent.name for path in CHECKED.glob("*/expected.safetensors"))


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES)


@pytest.fixture
def directory(case):
    return CHECKED / case


@pytest.fixture(scope="session")
def named_case():
    """named_case(name): the folder of one case; the test is skipped for one that is in neither place."""

    def find(name):
        if name not in CASES:
            pytest.skip(f"the case {name} is in ../shared/parity, not among the ten of this repository")
        return CHECKED / name

    return find
