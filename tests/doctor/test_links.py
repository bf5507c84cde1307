"""Links between devices that lose what is sent are found by value, and the cure is named. The faults are put in, on CPUs."""

import re
import sys
import types

import pytest
import torch
import torch.distributed as dist

from packtrain.doctor import links as said_of
from packtrain.doctor.links import Links, describe_links, find_causes, find_cure, reduce_between, tell_problems
from packtrain.errors import DeviceError
from packtrain.parallel import links
from packtrain.parallel.links import check_links, copy_between, sum_over_ranks
from packtrain.parallel.ranks import Ranks

CPU = torch.device("cpu")


def broken(how):
    return (sys.executable, "-m", "tests.doctor.broken_links", how)


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def reduce_as(monkeypatch):
    """Puts another all-reduce in torch's place."""
    return lambda function: monkeypatch.setattr(dist, "all_reduce", function)


def ended(is_completed=True):
    return types.SimpleNamespace(is_completed=lambda: is_completed, wait=lambda: None)


def test_copies_are_compared_by_value():
    assert copy_between([CPU] * 3) == {}
    assert copy_between([CPU] * 2, lambda _, target: target.zero_()) == {(0, 1): "zeros", (1, 0): "zeros"}
    assert copy_between([CPU] * 2, lambda *_: None) == {(0, 1): "nothing", (1, 0): "nothing"}
    calls = []

    def late(source, target):
        """The second direction loses the end."""
        calls.append(target.copy_(source))
        if len(calls) == 2:
            target[-24:] = 7

    assert copy_between([CPU] * 2, late) == {(1, 0): "24 of 1,024 numbers wrong"}

    def refuse(*_):
        raise RuntimeError("CUDA error: peer access is not supported\nmore")

    assert copy_between([CPU] * 2, refuse)[0, 1] == "an error: CUDA error: peer access is not supported"


@pytest.mark.usefixtures("group")
def test_a_sum_is_compared_by_value(reduce_as):
    assert sum_over_ranks(0, 1, CPU) is None
    # The others' numbers are missing.
    assert sum_over_ranks(0, 2, CPU) == "1,024 of 1,024 numbers wrong"
    reduce_as(lambda value, **_: (value.zero_(), ended())[1])
    assert sum_over_ranks(0, 1, CPU) == "zeros"
    reduce_as(lambda *_, **__: ended(False))
    assert sum_over_ranks(0, 1, CPU, wait_s=0.02) == "nothing within 0.02 s"


@pytest.mark.usefixtures("group")
def test_training_does_not_start_over_links_that_lose_numbers(reduce_as, monkeypatch):
    two = Ranks(0, 0, 2, 2)
    check_links(Ranks(), CPU)
    reduce_as(lambda value, **_: (value.zero_(), ended())[1])
    with pytest.raises(DeviceError, match=r"gave zeros on process 0 .*; set NCCL_P2P_DISABLE=1, or run `packtrain doc"):
        check_links(two, CPU)
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    with pytest.raises(DeviceError, match=r"does not arrive at the other; run `packtrain doctor`"):
        check_links(two, CPU)
    monkeypatch.setattr(links, "_LEAVING_S", 1e6)
    reduce_as(lambda *_, **__: ended(False))
    with pytest.raises(DeviceError, match=r"gave nothing within 0.02 s on process 0"):
        check_links(two, CPU, wait_s=0.02)


def says(script):
    """A process that does not need torch in place of one that does; its rank is in sys.argv[2]."""
    return (sys.executable, "-c", f"import json, os, sys, time\n{script}")


def test_an_all_reduce_that_fails_is_tried_with_other_settings(monkeypatch):
    monkeypatch.delenv("NCCL_P2P_DISABLE", raising=False)
    answer = "print(json.dumps({'wrong': %s}))"
    assert find_cure("cpu", 2, command=says(answer % "None")) == (None, None)
    for name, cured_by in (("NCCL_P2P_DISABLE", 1), ("NCCL_SHM_DISABLE", 2)):
        found, cure = find_cure(
            "cpu", 2, command=says(answer % f"None if os.environ.get('{name}') == '1' else 'zeros'")
        )
        assert found == "zeros on GPU 0" and len(cure) == cured_by and cure[name] == "1"
    assert find_cure("cpu", 2, command=says(answer % "'zeros'")) == ("zeros on GPU 0", None)


def test_processes_that_hang_or_fail_end_in_bounded_time(monkeypatch):
    monkeypatch.setattr(said_of, "_START_S", 0.2)
    monkeypatch.setattr(said_of, "_AFTER_FAILURE_S", 0.1)
    assert reduce_between("cpu", 2, {}, command=says("time.sleep(100)"), wait_s=0.1) == "no answer from GPU 0"
    failing = says("sys.exit('NCCL error: unhandled system error') if sys.argv[2] == '1' else time.sleep(100)")
    assert reduce_between("cpu", 2, {}, command=failing) == "an error on GPU 1 (NCCL error: unhandled system error)"
    assert "its process ended without a word" in reduce_between("cpu", 1, {}, command=says("exit(3)"))


@pytest.mark.slow
def test_real_processes_find_an_all_reduce_that_gives_zeros_or_hangs(monkeypatch):
    assert find_cure("cpu", 2, command=broken("zeros")) == ("zeros on GPU 0", {"NCCL_P2P_DISABLE": "1"})
    monkeypatch.setattr(said_of, "_START_S", 20.0)
    assert reduce_between("cpu", 2, {}, command=broken("hang"), wait_s=1) == "no answer from GPU 0"


CARDS = ("NVIDIA GeForce RTX 4090",) * 3


@pytest.mark.parametrize(
    ("found", "fact", "sentences"),
    [
        (Links(CARDS, 3, {}, None), "all 6 copies arrive whole, and an all-reduce gives the right numbers", []),
        (
            Links(CARDS, 0, {}, None),
            "0 of 3 pairs of 3 GPUs reach each other directly",
            [
                r"3 GPUs \(NVIDIA GeForce RTX 4090\) reach each other .* slower; write parallel\.mode=ddp .*--shm-size=1g"
            ],
        ),
        (
            Links(CARDS, 3, {(1, 2): "zeros"}, "zeros on GPU 2", {"NCCL_P2P_DISABLE": "1"}),
            "5 of 6 copies arrive whole, and an all-reduce gives zeros on GPU 2",
            [r"cannot train together; set NCCL_P2P_DISABLE=1, with which it is right \(tried\); .*IOMMU.*large BAR"],
        ),
        (
            Links(CARDS, 3, {}, "no answer from GPU 0", None, ("the IOMMU is on: switch it off",)),
            "an all-reduce gives no answer from GPU 0",
            [r"neither NCCL_P2P_DISABLE=1 nor NCCL_SHM_DISABLE=1 helps \(tried\): .*; the IOMMU is on: switch it off$"],
        ),
        (
            Links(CARDS, 3, {(0, 1): "zeros", (1, 0): "zeros"}, None),
            "4 of 6 copies",
            [r"copy from GPU 0 to GPU 1 gives zeros \(2 of 6 copies are wrong\), .*; set NCCL_P2P_DISABLE=1 for every"],
        ),
    ],
    ids=["sound", "no peers", "zeros", "not cured", "only copies"],
)
def test_what_is_said_of_links(found, fact, sentences, monkeypatch):
    monkeypatch.delenv("NCCL_P2P_DISABLE", raising=False)
    assert fact in describe_links(found)
    said = tell_problems(found)
    assert len(said) == len(sentences)
    for sentence, pattern in zip(said, sentences, strict=True):
        assert re.search(pattern, sentence), sentence


def test_a_variable_that_helps_is_to_be_kept(monkeypatch):
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    (said,) = tell_problems(Links(CARDS, 3, {(0, 1): "zeros"}, None))
    assert "keep NCCL_P2P_DISABLE=1 set" in said


def test_causes_are_read_from_the_system(tmp_path, monkeypatch):
    cards = [types.SimpleNamespace(pci_domain_id=0, pci_bus_id=65 + n, pci_device_id=0) for n in range(2)]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: cards[number])
    assert find_causes(2, tmp_path) == ()
    (tmp_path / "class/iommu/dmar0").mkdir(parents=True)
    for number, size in enumerate((2**35, 2**28)):
        place = tmp_path / f"bus/pci/devices/0000:{65 + number:02x}:00.0"
        place.mkdir(parents=True)
        regions = [(0xFB000000, 0xFBFFFFFF), (0x1000000000, 0x1000000000 + size - 1)]
        (place / "resource").write_text("".join(f"0x{a:016x} 0x{b:016x} 0x000000000014220c\n" for a, b in regions))
    iommu, bar = find_causes(2, tmp_path)
    assert "iommu=off" in iommu
    assert "sees 256 MB of GPU 1: turn on Above 4G Decoding and Resizable BAR" in bar


def test_doctor_asks_nothing_of_a_machine_with_one_gpu_or_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert said_of.examine_links() is None
