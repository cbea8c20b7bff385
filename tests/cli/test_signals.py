"""Ctrl-C and SIGTERM in real processes: message, status, and what is left."""

import signal
import subprocess
import sys

import pytest

from wavelet_core import ModelConfig, WaveletLM
from wavelet_core.tokenizers import BytesTokenizer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
# Programs that say when they can be stopped, and that would otherwise go on for an hour.
HANDLED = "import sys, time; from wavelet_cli.signals import handle_signals, leave, report; handle_signals();"
NATIVE = f"""{HANDLED}
import hashlib, threading
threading.Timer(0.5, print, kwargs={{"flush": True}}).start()
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
WRITING = f"""{HANDLED}
from pathlib import Path
from wavelet_core.atomic_files import write_atomically
try:
    write_atomically(Path(sys.argv[1]), lambda file: [file.write_text("half"), print(flush=True), time.sleep(3600)])
except KeyboardInterrupt as interrupt:
    leave(report(interrupt))
"""
SAVING = f"""{HANDLED}
from wavelet_cli.signals import UNTIL_NOTICED
from wavelet_train.interruption import StopOnSignal
with StopOnSignal() as stop:
    print(flush=True)
    while not stop.signal_name:
        time.sleep(0.01)
    time.sleep(UNTIL_NOTICED + 0.5)
    print("saved")
"""


def stop(process, number):
    """Send the signal once the process says something; its status and what it then wrote."""
    assert process.stdout.read(1)
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    return process.returncode, output, errors


def python(program, *arguments):
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", STATUS)
def test_native_code_that_runs_on_is_ended(number):
    status, _, errors = stop(python(NATIVE), number)
    assert (status, errors) == (STATUS[number], f"wavelet: stopped by {number.name}\n")


@pytest.mark.parametrize("number", STATUS)
def test_nothing_half_written_is_left(number, tmp_path):
    status, _, errors = stop(python(WRITING, str(tmp_path / "file")), number)
    assert (status, errors) == (STATUS[number], f"wavelet: stopped by {number.name}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", STATUS)
def test_a_run_that_saves_itself_is_given_the_time(number):
    status, output, errors = stop(python(SAVING), number)
    assert (status, output, errors) == (0, "saved\n", "")


@pytest.mark.parametrize("number", STATUS)
def test_a_command_says_what_stopped_it(number, tmp_path, wavelet_process):
    model = WaveletLM(ModelConfig(vocabulary_size=256, width=16, layers=1, levels=2))
    model.save_pretrained(tmp_path / "model", BytesTokenizer())
    process = wavelet_process("generate", tmp_path / "model", "--prompt", "x", "--num-tokens", "100000000")
    status, _, errors = stop(process, number)
    assert (status, errors) == (STATUS[number], f"wavelet: stopped by {number.name}\n")
