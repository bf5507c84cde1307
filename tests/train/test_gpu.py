"""A GPU that cannot be used is refused in one sentence with the way out; one that can is the process's own. `torch.cuda` is a fake."""

import types

import pytest
import torch
import torch.distributed as dist

from packtrain.doctor.machine import explain_unusable
from packtrain.errors import DeviceError
from packtrain.parallel import ranks
from packtrain.parallel.ranks import Ranks
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.train import gpu, loop, run, validate
from packtrain.train.device import open_device, resolve_compile, resolve_device
from packtrain.train.gpu import use_gpu
from packtrain.train.memory import _describe_shortage, memory_bytes, warn_about_others
from packtrain.train.run import train
from packtrain.train.step import Placement, Precision

GB = 10**9
LAST = torch.device("cuda", 1)


@pytest.fixture
def machine(monkeypatch):
    """Makes torch report two GPUs; `calls` has the devices that were set."""
    calls = []

    def say(*, count=2, capability=(9, 0), built=("sm_80", "sm_90", "compute_90"), free=80 * GB, error=None):
        def mem_get_info(_device):
            if error:
                raise RuntimeError(error)
            return free, 80 * GB

        fakes = {
            "is_available": lambda: count > 0,
            "device_count": lambda: count,
            "get_arch_list": lambda: [*built],
            "get_device_capability": lambda _=None: capability,
            "get_device_name": lambda _=None: "NVIDIA Thing",
            "get_device_properties": lambda _=None: types.SimpleNamespace(total_memory=80 * GB),
            "set_device": calls.append,
            "mem_get_info": mem_get_info,
            "memory_reserved": lambda _=None: 5 * GB,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        return calls

    return say


@pytest.fixture
def torchrun(monkeypatch):
    """Sets the environment of one of several processes."""

    def start(local_rank, local_world_size):
        place = {"LOCAL_RANK": local_rank, "RANK": local_rank}
        for name, value in {**place, "WORLD_SIZE": local_world_size, "LOCAL_WORLD_SIZE": local_world_size}.items():
            monkeypatch.setenv(name, str(value))

    return start


class StopHereError(Exception):
    pass


def stop(*_, **__):
    raise StopHereError


def test_the_gpu_is_set_before_anything_is_opened_on_it(machine, tiny, tmp_path, monkeypatch):
    calls = machine()
    monkeypatch.setattr(run, "open_training_data", stop)
    with pytest.raises(StopHereError):
        train(tiny("train.device=cuda:1", "train.precision=fp32"), tmp_path / "run", resume=False)
    assert calls == [LAST]


def test_each_of_torchruns_processes_has_its_own(machine, torchrun, tiny, tmp_path, monkeypatch):
    calls = machine()
    torchrun(1, 2)
    monkeypatch.setattr(run, "open_training_data", stop)
    with pytest.raises(StopHereError):
        train(tiny("train.device=cuda", "train.precision=fp32"), tmp_path / "run", resume=False)
    assert calls == [LAST]


@pytest.mark.parametrize("local_rank", [0, 2])
def test_more_processes_than_gpus_is_one_sentence_of_one_process(machine, torchrun, tiny, tmp_path, local_rank):
    calls = machine()
    torchrun(local_rank, 3)
    with pytest.raises(DeviceError, match=r"3 processes .* each sees 2 CUDA devices; .*--nproc-per-node 2") as raised:
        train(tiny("train.device=cuda"), tmp_path / "run", resume=False)
    assert raised.value.is_reported == (local_rank > 0)
    assert not calls


@pytest.mark.parametrize(
    ("wanted", "count", "sentence"),
    [
        ("cuda:2", 2, r"cuda:2 does not exist: this machine has 2 CUDA devices; write a number from 0 to 1"),
        ("cuda:1", 1, r"cuda:1 does not exist: this machine has 1 CUDA device; write train\.device=cuda:0"),
    ],
)
def test_a_number_that_no_gpu_has(machine, wanted, count, sentence):
    machine(count=count)
    with pytest.raises(DeviceError, match=sentence):
        resolve_device(wanted)


# As torch's source gives them.
TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by"
NONE = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from"
HIDDEN = "No CUDA GPUs are available"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (TOO_OLD, r"driver is too old: it supports CUDA 11\.4, and this build of torch needs 13\.0; update the driver"),
        (HIDDEN, r"CUDA_VISIBLE_DEVICES=7 hides every GPU; unset or correct it"),
        ("Unexpected error. Error 803: system has unsupported", r"different versions; restart the machine"),
        ("Unexpected error. Error 802: system not yet initialized", r"nvidia-fabricmanager is not running; start it"),
        ("Something else\nand more", r"CUDA does not start \(Something else\); try `nvidia-smi`"),
    ],
)
def test_a_driver_that_does_not_start_is_refused_or_warned_of(machine, monkeypatch, caplog, error, sentence):
    machine(count=0)

    def init():
        raise RuntimeError(error)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(DeviceError, match=rf"train\.device=cuda, but .*{sentence}.*write train\.device=cpu"):
        resolve_device("cuda")
    assert resolve_device("auto").type == "cpu"
    assert "using the CPU, because" in caplog.text


@pytest.mark.parametrize("version", [None, "13.0"])
def test_a_machine_without_a_gpu_is_not_spoken_of(machine, monkeypatch, tmp_path, caplog, version):
    machine(count=0)

    def init():
        raise RuntimeError(NONE)

    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(gpu, "_DRIVER", tmp_path / "none")
    assert resolve_device("auto").type == "cpu" and not caplog.text
    with pytest.raises(DeviceError, match=r"finds no CUDA device on this machine; write train\.device=cpu"):
        resolve_device("cuda")


def test_a_build_of_torch_without_cuda_beside_a_driver_is_named(machine, monkeypatch, tmp_path, caplog):
    machine(count=0)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(gpu, "_DRIVER", tmp_path)
    assert resolve_device("auto").type == "cpu"
    assert "is a build without CUDA; install a CUDA build of torch" in caplog.text


@pytest.mark.parametrize(
    ("capability", "built", "sentence"),
    [
        ((6, 1), ("sm_75", "sm_80", "sm_90"), r"capability 6\.1, .* for 7\.5 and newer; install an older CUDA build"),
        ((12, 0), ("sm_75", "sm_90a"), r"capability 12\.0, .* up to 9\.0; install a build of torch for a newer CUDA"),
        ((10, 3), ("sm_90", "sm_100a"), r"capability 10\.3, .* up to 10\.0; install"),
    ],
)
def test_a_gpu_that_the_build_has_no_kernels_for(machine, capability, built, sentence):
    calls = machine(capability=capability, built=built)
    with pytest.raises(DeviceError, match=sentence):
        use_gpu(LAST)
    assert not calls


@pytest.mark.parametrize(
    ("capability", "built"),
    [((8, 9), ("sm_80",)), ((12, 0), ("sm_90", "compute_90")), ((9, 0), ("sm_90a",)), ((7, 5), ())],
)
def test_a_gpu_that_runs_the_builds_kernels_is_used(machine, capability, built):
    calls = machine(capability=capability, built=built)
    use_gpu(LAST)
    assert calls == [LAST]
    use_gpu(torch.device("cpu"))
    assert calls == [LAST]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            "CUDA error: out of memory",
            r"cuda:1 has no memory left .* others fill it; end them \(`nvidia-smi` lists them",
        ),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", r"cuda:1 is used by another process alone"),
    ],
)
def test_a_gpu_that_another_process_has(machine, error, sentence):
    machine(error=error)
    with pytest.raises(DeviceError, match=sentence):
        use_gpu(LAST)


def test_generation_and_evaluation_refuse_a_gpu_as_training_does(machine):
    machine(error="CUDA error: out of memory")
    with pytest.raises(DeviceError, match=r"cuda:1 has no memory left .* others fill it"):
        open_device("cuda:1")
    assert "cuda:1 has no memory left" in explain_unusable(LAST)
    machine(capability=(3, 5))
    with pytest.raises(
        DeviceError, match=r"compute capability 3\.5, and torch \S+ has kernels for 8\.0 and newer; install"
    ):
        open_device("cuda:1")
    assert machine() == [LAST, LAST] and open_device("cuda:1") == LAST and explain_unusable(LAST) is None


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            "Triton Error [CUDA]: the provided PTX was compiled with an unsupported toolchain.",
            r"driver is older than the CUDA that torch compiles for.*; update the driver, or write train\.compile=false",
        ),
        (
            "CUDA error: no kernel image is available for execution on the device",
            r"no kernels for this GPU.* write train\.",
        ),
    ],
)
def test_kernels_that_a_driver_cannot_load_are_one_sentence(tiny, tmp_path, monkeypatch, error, sentence):
    def fail(*_, **__):
        raise RuntimeError(error)

    monkeypatch.setattr(loop, "train_step", fail)
    with pytest.raises(DeviceError, match=sentence):
        train(tiny(), tmp_path / "run", resume=False)
    (event,) = [e for e in read_jsonl(RunLayout(tmp_path / "run").events) if e["event"] == "failed"]
    assert event["exit_code"] == 2


def test_a_gpu_without_memory_for_nccl_is_not_called_a_lost_process():
    def connect():
        raise dist.DistBackendError("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'")

    with pytest.raises(DeviceError, match=r"NCCL finds no memory on a GPU .* lower train\.micro_batch_size"):
        with ranks._explain_lost_rank():
            connect()


def test_triton_has_no_code_for_an_old_one(machine, tiny, caplog, monkeypatch):
    monkeypatch.setattr("packtrain.train.device._missing_for_compilation", lambda _: None)
    machine(capability=(6, 1))
    assert resolve_compile(tiny().train, LAST) is False
    assert "NVIDIA Thing has compute capability 6.1, and compilation needs 7.0" in caplog.text
    with pytest.raises(DeviceError, match=r"train\.compile=true needs a GPU of compute capability 7\.0"):
        resolve_compile(tiny("train.compile=true").train, LAST)


@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler")
def test_what_others_hold_of_a_gpu_is_counted_and_said(machine, tiny, caplog):
    placement = Placement(LAST, Precision("fp32", "cuda", torch.amp.GradScaler("cuda", enabled=False)), 8)
    machine(free=75 * GB)
    assert memory_bytes(LAST, Ranks()) == 80 * GB, "what torch keeps for this process is its own"
    warn_about_others(tiny(), placement)
    assert not caplog.text and "others hold" not in str(_describe_shortage(tiny(), placement))
    machine(free=int(-4.5 * GB))
    assert memory_bytes(LAST, Ranks()) == GB // 2
    warn_about_others(tiny(), placement)
    assert "cuda:1 has 0.5 GB left beside the 79.5 GB of other processes, and this run needs 1.0 GB" in caplog.text
    assert "(0.5 GB; others hold 79.5 GB: `nvidia-smi` lists them)" in str(_describe_shortage(tiny(), placement))


def test_rows_that_fit_in_training_and_not_in_validation(tiny, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(validate, "evaluate_rows", fail)
    config = tiny("train.steps=2", "evaluate.every=2", "train.micro_batch_size=4")
    assert train(config, tmp_path / "run", resume=False)["step"] == 2
    (event,) = [e for e in read_jsonl(RunLayout(tmp_path / "run").events) if e["event"] == "evaluation_failed"]
    assert event["reason"].startswith("in validation, train.micro_batch_size=4 rows of ")
    assert event["reason"].endswith("write train.micro_batch_size=2, the largest that fits by the planner's estimate")
    assert "Tried" not in caplog.text
