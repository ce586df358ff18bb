"""The API process as a whole."""

import subprocess
import sys


def test_an_api_process_holds_no_torch() -> None:
    loaded = "import sys, service.app, service.supervisor; print(sorted({'torch', 'training.finetuning', 'onnx'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "[]"
