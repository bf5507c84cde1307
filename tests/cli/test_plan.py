"""`packtrain plan` says in ten lines what its JSON has, needs no torch, and refuses what it cannot plan for."""

import json
import re
import subprocess
import sys
import time

import pytest

from packtrain.cli.figures import amount, duration
from packtrain.cli.plan import plan as show_plan
from packtrain.config.load import load_run_config, to_toml
from packtrain.errors import ConfigError, RunError
from packtrain.model.cpu.name import cpu_name
from packtrain.plan.rates import keep_rate
from packtrain.runs.layout import RunLayout


@pytest.fixture
def run(capsys):
    """Plans in this process, without a probe; gives what was printed."""

    def run(preset="llama2-437m", *settings, **options):
        show_plan(preset, list(settings), probe=False, **options)
        return capsys.readouterr().out

    return run


def test_the_tables_show_the_figures_of_the_json(run):
    words = ("llama2-437m", "train.tokens=10_000_000_000")
    shown = run(*words, price_per_hour=2.0, full=True)
    figures = json.loads(run(*words, price_per_hour=2.0, as_json=True))
    assert f"{figures['parameters']['total']:,}" in shown
    assert f"{figures['steps']:,}" in shown
    assert all(word in shown for word in ("computed", "measured", "assumed", "cost"))


def test_a_plan_needs_no_torch():
    script = (
        "import sys; from packtrain.cli.plan import plan; plan('llama2-437m', as_json=True, probe=False); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_the_reference_job_has_hours_and_money_without_a_dataset(run):
    shown = run()
    assert len(shown.splitlines()) <= 14
    for word in ("437.6M parameters", "fineweb-edu-100bt", "8 x H100", "1 x RTX 4090", "8.751B tokens", "40% MFU"):
        assert word in " ".join(shown.split())
    first, second = json.loads(run(as_json=True))["references"]
    assert (first["devices"], first["tokens"]) == (8, 190_735 * 524_288)
    flops = 6 * 437_584_896 + 12 * 32 * 1024 * 1024
    kept = first["scale"]["efficiency"]
    assert 0.95 < kept < 1
    assert first["training_hours"] == pytest.approx(first["tokens"] * flops / (8 * 0.4 * 989.4e12) / 3600 / kept)
    assert first["cost"] == pytest.approx(first["hours"] * 8 * first["price_per_hour"])
    assert second["tokens"] == 20 * 437_584_896 // 524_288 * 524_288
    assert first["price_is"] == second["price_is"] == "assumed"


def test_a_gpu_that_is_not_here_is_asked_about(run):
    figures = json.loads(run(gpu="rtx4090", gpus=8, nodes=2, price_per_hour=2.5, as_json=True))["target"]
    assert (figures["device"], figures["devices"], figures["parallel_mode"]) == ("RTX 4090", 16, "ddp")
    assert figures["cost"] == pytest.approx(figures["hours"] * 16 * 2.5)
    shown = run(gpu="rtx4090", gpus=8, nodes=2, price_per_hour=2.5)
    assert "16 x RTX 4090" in shown and "time here" not in shown
    command = shown.splitlines()[-1]
    assert "torchrun --nnodes 2 --nproc-per-node 8 " in command and command.endswith("--run-dir runs/llama2-437m")


def test_several_gpus_have_an_efficiency_and_their_links_a_source(run):
    shown = " ".join(run(gpu="h100", gpus=8, nodes=8, full=True).split())
    figures = json.loads(run(gpu="h100", gpus=8, nodes=8, as_json=True))["target"]
    scale = figures["scale"]
    assert f"efficiency {scale['efficiency']:.0%} of 64 times one's rate" in shown
    assert "NVLink 4 and 8 x InfiniBand NDR 400" in shown and "nccl-tests/issues/212" in shown
    assert [way["parallel_mode"] for way in figures["ways"]] == ["ddp", "hybrid", "fsdp"]
    assert all(word in shown for word in ("hybrid 8 ", "fsdp 64 ", "last backward", "1.75 GB", "no overlap"))
    slow = " ".join(run(gpu="rtx4090", gpus=8, nodes=2).split())
    assert "10 Gbit/s Ethernet" in slow and re.search(r"; \d\d% with parallel\.mode=fsdp parallel\.shard_size=8", slow)
    given = run(gpu="rtx4090", gpus=8, nodes=2, network=100.0)
    assert "a network of 100 Gbit/s" in " ".join(given.split())
    assert "efficiency" not in run(gpu="rtx4090") and "efficiency" not in run()


def test_what_does_not_fit_says_so_and_the_command_has_what_does(run):
    shown = run("llama2-437m", "train.micro_batch_size=64", gpu="3080")
    assert "does not fit" in shown and "write train.micro_batch_size=2, which fits" in " ".join(shown.split())
    command = shown.splitlines()[-1]
    assert "train.micro_batch_size=2 " in command and "=64" not in command


def test_epochs_that_memorise_are_told(run, dataset):
    shown = run("demo", f"data.dataset={dataset}", "model.vocab_size=512")
    assert re.search(r"epochs +\d\d+: ", shown) and "memorise" in shown
    said = " ".join(shown.split())
    assert re.search(r"text teaches as \S+ new tokens; this model can use \S+, and 4 epochs feed \S+ parameters", said)
    assert "teaches as" not in run("llama2-15m")


def test_commands_quote_what_a_shell_would_split(run, tmp_path):
    preset = tmp_path / "my preset.toml"
    preset.write_text('base = "demo"\n')
    assert run(str(preset)).splitlines()[-1].endswith(f"'{preset}' data.dataset=DATASET --run 'runs/my preset'")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("llama2-437m", "--gpu", "rtx 9999"), "there are no figures of a GPU named 'rtx 9999'"),
        (("llama2-437m", "--gpus", "0"), "--gpus 0 does not fit"),
        (("llama2-437m", "--price-per-hour", "cheap"), "--price-per-hour cheap does not fit"),
        (("llama2-437m", "--price-per-hour", "inf", "--no-probe"), "not a finite number"),
        (("llama2-437m", "--nodes", "2", "--no-probe"), "name their GPU with --gpu"),
        (("llama2-437m", "--gpu", "h100", "--network", "100"), "say how many there are with --nodes"),
        ((), "needs PRESET"),
    ],
)
def test_rubbish_is_refused_in_one_sentence(words, sentence, monkeypatch, capsys):
    from packtrain.cli.main import main

    monkeypatch.setattr(sys, "argv", ["packtrain", "plan", *words])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == ConfigError.exit_code
    assert sentence in said and said.count("\n") == 1


def test_amounts_and_durations_as_people_say_them():
    assert [amount(n) for n in (950, 1_377_000, 437_584_896, 999_960_000)] == ["950", "1.377M", "437.6M", "1B"]
    assert [duration(h) for h in (1e-4, 0.01, 0.5, 26.6, 120.0, 2400.0, 5e4)] == [
        "under 1 s",
        "36 s",
        "30 min",
        "26.6 h",
        "120 h",
        "100 days",
        "6 years",
    ]


@pytest.fixture
def kept_rate(tmp_path, monkeypatch):
    """A rate of this machine, as an earlier plan kept it, by the settings that it is for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def keep(config, **changes):
        rate = {"tokens_per_s": 2048.0, "device": "a CPU", "device_type": "cpu", "memory_bytes": 10**10}
        keep_rate(config, {**rate, "precision": "bf16", "measured_at": time.time(), **changes})

    return keep


def test_a_rate_that_was_measured_is_used_and_said(kept_rate, capsys):
    words = ["evaluate.every=0", "model.vocab_size=4096"]
    kept_rate(load_run_config("demo", words).config)
    show_plan("demo", words)
    shown = capsys.readouterr().out
    assert "17 min at 2,048 tokens/s in bf16 (measured)" in shown


def test_a_run_is_set_beside_its_plan(kept_rate, dataset, tmp_path, capsys):
    run = tmp_path / "run"
    layout = RunLayout(run)
    run.mkdir()
    config = load_run_config("demo", [f"data.dataset={dataset}", "model.vocab_size=512"]).config
    layout.config.write_text(to_toml(config))
    hardware = {"device": cpu_name(), "device_type": "cpu", "cores": 2, "threads": 2, "world_size": 1}
    layout.manifest.write_text(json.dumps({"hardware": hardware}))
    with pytest.raises(RunError, match="has no metrics of a step yet"):
        show_plan(after=run)
    line = {"step": 10, "tokens": 20480, "loss": 5.0, "tokens_per_s": 1024.0, "memory_bytes": 5 * 10**8}
    layout.metrics.write_text(json.dumps(line) + '\n{"step": 20, "tok')
    kept_rate(config, **hardware)
    show_plan(after=run)
    shown = capsys.readouterr().out
    assert re.search(r"tokens/s +2,048 +1,024 +0\.50", shown) and "0.50 GB" in shown
    show_plan(after=run, as_json=True)
    assert json.loads(capsys.readouterr().out)["tokens_per_s"]["ratio"] == 0.5
    with pytest.raises(ConfigError, match="leave out demo"):
        show_plan("demo", after=run)
    layout.manifest.write_text("[]")
    with pytest.raises(RunError, match=r"manifest\.json is not the manifest of a run"):
        show_plan(after=run)
    with pytest.raises(RunError, match="does not exist"):
        show_plan(after=tmp_path / "nowhere")
