"""The Python in each package's README runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[2] / "packages"
SNIPPETS = [
    pytest.param(snippet, id=readme.parent.name)
    for readme in sorted(PACKAGES.glob("*/README.md"))
    for snippet in re.findall(r"^```python\n(.*?)^```", readme.read_text(encoding="utf-8"), re.S | re.M)
]


def test_every_library_shows_some_python():
    libraries = {path.parent.name for path in PACKAGES.glob("*/README.md")} - {"wavelet-cli"}
    assert {snippet.id for snippet in SNIPPETS} == libraries != set()


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs(snippet, tmp_path):
    if "from transformers" in snippet:
        pytest.importorskip("transformers", minversion="5.24")
    done = subprocess.run([sys.executable, "-I", "-c", snippet], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
