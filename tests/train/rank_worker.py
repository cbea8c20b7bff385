"""One of several processes that train together: does one training after the other, as lines of JSON on stdin say."""

from __future__ import annotations

import json
import os
import sys
import traceback

from wavelet_train.run_config import load_run_config
from wavelet_train.trainer import train

for line in sys.stdin:
    task = json.loads(line)
    os.environ.update(task["environment"])
    try:
        os.chdir(task["folder"])
        result = train(load_run_config("tiny.yaml", task["overrides"]), task["out"], resume=task["resume"])
        answer = {"step": result.step, "bits_per_byte": result.report and result.report.evaluation.bits_per_byte}
    except BaseException as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    print("\n" + json.dumps({"answer": answer}), flush=True)
