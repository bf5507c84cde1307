"""Decides what is said of the links between GPUs: whether what is sent arrives, and what to set if it does not."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from packtrain.config.run import RunConfig
from packtrain.doctor.finding import Finding, fault
from packtrain.parallel.links import NO_DIRECT_COPIES, WAIT_S, copy_between

_CHECK = "links between GPUs"
_CHILD = (sys.executable, "-m", "packtrain.parallel.links")
# Tried in this order if an all-reduce fails: without direct copies, then through the network's code alone.
_CURES = ({NO_DIRECT_COPIES: "1"}, {NO_DIRECT_COPIES: "1", "NCCL_SHM_DISABLE": "1"})
# Seconds to start the processes and to import torch.
_START_S = 60.0
_AFTER_FAILURE_S = 5.0
_SILENCE = "no answer from GPU"
# A GPU's memory that the processor sees without the large BAR.
_SMALL_BAR = 2**29


@dataclass(frozen=True)
class Links:
    """What was found between the GPUs of a machine."""

    names: tuple[str, ...]
    num_direct: int
    """Pairs that reach each other directly, as the driver says."""
    wrong_copies: Mapping[tuple[int, int], str]
    wrong_sum: str | None
    """What is wrong with an all-reduce over all GPUs."""
    cure: Mapping[str, str] | None = None
    """Variables of the environment with which that all-reduce came out right."""
    causes: tuple[str, ...] = ()
    """What of this machine may be the cause of a fault, with its fix."""

    @property
    def num_pairs(self) -> int:
        return len(self.names) * (len(self.names) - 1) // 2


def examine_links() -> Links | None:
    """Tries what a run on all GPUs of this machine does; None if there are fewer than two. Takes some seconds a try."""
    if not torch.cuda.is_available() or (count := torch.cuda.device_count()) < 2:
        return None
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    wrong_copies = copy_between([torch.device("cuda", number) for number in range(count)])
    wrong_sum, cure = find_cure("cuda", count)
    return Links(
        names=tuple(torch.cuda.get_device_name(number) for number in range(count)),
        num_direct=sum(torch.cuda.can_device_access_peer(*pair) for pair in pairs),
        wrong_copies=wrong_copies,
        wrong_sum=wrong_sum,
        cure=cure,
        causes=find_causes(count) if wrong_copies or wrong_sum else (),
    )


def check_links(config: RunConfig) -> Finding | None:
    """The same as one finding of a run's checks; None if the run does not use several GPUs of this machine."""
    links = examine_links() if config.train.device in ("auto", "cuda") else None
    if links is None:
        return None
    if links.wrong_sum is None and not links.wrong_copies:
        return Finding(_CHECK, "ok", describe_links(links))
    says, _, fix = next(iter(tell_problems(links))).partition("; ")
    return fault(_CHECK, says, fix)


def describe_links(links: Links) -> str:
    """The fact, in one line."""
    count, ordered = len(links.names), 2 * links.num_pairs
    whole = ordered - len(links.wrong_copies)
    copies = f"all {ordered} copies arrive whole" if whole == ordered else f"{whole} of {ordered} copies arrive whole"
    return (
        f"{links.num_direct} of {links.num_pairs} pairs of {count} GPUs reach each other directly; {copies}, and an all-reduce "
        f"gives {links.wrong_sum or 'the right numbers'} (measured)"
    )


def tell_problems(links: Links) -> list[str]:
    """A sentence for each thing that is wrong or slow, with what to do after its first semicolon."""
    others = "; ".join(links.causes) or (
        "for direct copies, switch off the IOMMU in the BIOS, or write iommu=off after the kernel's other parameters, and turn "
        "on the large BAR (Above 4G Decoding and Resizable BAR)"
    )
    if links.wrong_sum is not None:
        return [
            f"an all-reduce over {len(links.names)} GPUs gives {links.wrong_sum}, so they cannot train together; "
            f"{_describe_cure(links.cure)}; {others}"
        ]
    if links.wrong_copies:
        (first, second), found = next(iter(links.wrong_copies.items()))
        count = len(links.wrong_copies)
        is_set = os.environ.get(NO_DIRECT_COPIES) == "1"
        keep = f"keep {NO_DIRECT_COPIES}=1 set" if is_set else f"set {NO_DIRECT_COPIES}=1 for every run"
        return [
            f"a copy from GPU {first} to GPU {second} gives {found} ({count} of {2 * links.num_pairs} copies are wrong), although "
            f"an all-reduce is right; {keep}, so that none depends on such copies; {others}"
        ]
    if links.num_direct == 0:
        return [
            f"no two of the {len(links.names)} GPUs ({links.names[0]}) reach each other directly, so what they exchange goes "
            "through main memory, which works and is slower; write parallel.mode=ddp if a copy of the model fits (it sends "
            "gradients once a step, and fsdp sends weights with every micro-batch), and in a container give --ipc=host or "
            "--shm-size=1g"
        ]
    return []


def find_cure(
    device_type: str, count: int, *, command: Sequence[str] = _CHILD, wait_s: float = WAIT_S
) -> tuple[str | None, Mapping[str, str] | None]:
    """What is wrong with an all-reduce over `count` devices (None: nothing), and the first setting that makes it right."""
    wrong = reduce_between(device_type, count, {}, command=command, wait_s=wait_s)
    if wrong is None:
        return None, None
    for setting in _CURES:
        is_set = all(os.environ.get(name) == value for name, value in setting.items())
        if not is_set and reduce_between(device_type, count, setting, command=command, wait_s=wait_s) is None:
            return wrong, setting
    return wrong, None


def reduce_between(
    device_type: str, count: int, setting: Mapping[str, str], *, command: Sequence[str] = _CHILD, wait_s: float = WAIT_S
) -> str | None:
    """What is wrong with an all-reduce in `count` new processes, one for each device. Ends in bounded time, whatever they do."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict(setting)
    with tempfile.TemporaryDirectory(prefix="packtrain-links-") as scratch:
        places = [(Path(scratch) / f"{rank}.out", Path(scratch) / f"{rank}.err") for rank in range(count)]
        children = []
        for rank, (out, err) in enumerate(places):
            words = [*command, str(Path(scratch) / "store"), str(rank), str(count), device_type, str(wait_s)]
            with out.open("w") as said, err.open("w") as complained:
                children.append(subprocess.Popen(words, stdout=said, stderr=complained, env=environment))
        is_killed = _wait_for_all(children, _START_S + wait_s)
        found = [_read_result(*each) for each in zip(range(count), is_killed, places, strict=True)]
        # What a process says of itself explains the silence of the others.
        return min(filter(None, found), key=lambda text: text.startswith(_SILENCE), default=None)


def _wait_for_all(children: "list[subprocess.Popen[bytes]]", most_s: float) -> list[bool]:
    """Waits until all have ended, and kills those that have not after `most_s`, or soon after one has failed."""
    end = time.monotonic() + most_s
    try:
        while any(child.poll() is None for child in children) and time.monotonic() < end:
            if any(child.poll() for child in children):
                end = min(end, time.monotonic() + _AFTER_FAILURE_S)
            time.sleep(0.02)
    finally:
        left = [child for child in children if child.poll() is None]
        for child in left:
            child.kill()
            child.wait()
    return [child in left for child in children]


def _read_result(rank: int, is_killed: bool, places: tuple[Path, Path]) -> str | None:
    """What one process says is wrong with its result."""
    out, err = (path.read_text(errors="replace").strip() for path in places)
    answer = out.rpartition("\n")[2]
    if answer.startswith('{"wrong"'):
        wrong: str | None = json.loads(answer)["wrong"]
        return None if wrong is None else f"{wrong} on GPU {rank}"
    if is_killed:
        return f"{_SILENCE} {rank}"
    return f"an error on GPU {rank} ({err.rpartition(chr(10))[2][:300] or 'its process ended without a word'})"


def find_causes(count: int, devices: Path = Path("/sys")) -> tuple[str, ...]:
    """What of this machine makes direct copies fail, each with its fix, as far as Linux shows it under `devices`."""
    causes = []
    if any((devices / "class/iommu").glob("*")):
        causes.append(
            "the IOMMU is on: switch it off in the BIOS, or write iommu=off after the kernel's other parameters"
        )
    for number in range(count):
        seen = _visible_bytes(torch.cuda.get_device_properties(number), devices)
        if seen is not None and seen <= _SMALL_BAR:
            causes.append(
                f"the processor sees {seen / 2**20:.0f} MB of GPU {number}: turn on Above 4G Decoding and Resizable BAR in the BIOS"
            )
            break
    return tuple(causes)


def _visible_bytes(properties: object, devices: Path) -> int | None:
    """Size of the region of a GPU's memory that others on the bus can address (BAR1); None if the system does not show it."""
    place = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    if None in place:
        return None
    domain, bus, device = place
    try:
        lines = (devices / f"bus/pci/devices/{domain:04x}:{bus:02x}:{device:02x}.0/resource").read_text().splitlines()
        first, last = (int(word, 16) for word in lines[1].split()[:2])
    except (OSError, ValueError, IndexError):
        return None
    return last - first + 1 if last > first else None


def _describe_cure(cure: Mapping[str, str] | None) -> str:
    if cure is None:
        return (
            f"neither {NO_DIRECT_COPIES}=1 nor NCCL_SHM_DISABLE=1 helps (tried): update the driver, or train on one GPU with "
            "CUDA_VISIBLE_DEVICES=0"
        )
    return f"set {' '.join(f'{name}={value}' for name, value in cure.items())}, with which it is right (tried)"
