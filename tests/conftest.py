"""What a run of the tests says first."""

from pathlib import Path

TESTS = Path(__file__).parent


def pytest_report_header():
    if (TESTS.parents[1] / "shared" / "parity").is_dir():
        return "parity cases: all of ../shared/parity"
    count = len(list(TESTS.glob("parity/cases/*/expected.safetensors")))
    return f"parity cases: the {count} of this repository; the others would be in ../shared/parity"
