"""`packtrain plan` prints the same figures as its JSON, and needs no torch."""

import json
import subprocess
import sys


def test_the_tables_show_the_figures_of_the_json():
    def run(*words):
        command = [sys.executable, "-m", "packtrain", "plan", "llama2-437m", "train.tokens=10_000_000_000", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    shown, figures = run("--price-per-hour", "2"), json.loads(run("--json"))
    assert f"{figures['parameters']['total']:,}" in shown
    assert f"{figures['steps']:,}" in shown
    assert all(word in shown for word in ("computed", "measured", "assumed", "cost"))


def test_a_plan_needs_no_torch():
    script = (
        "import sys; from packtrain.cli.plan import plan; plan('llama2-437m', as_json=True); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
