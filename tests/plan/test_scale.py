"""A plan's efficiency of several devices follows from bytes and rates as they would be worked out by hand."""

import pytest

from packtrain.config.load import load_run_config
from packtrain.plan.cost import Offer, estimate_offer
from packtrain.plan.devices import ACCELERATORS
from packtrain.plan.links import find_wiring

N, OUTER = 437_584_896, 32_000 * 1024


def estimate(device, per_node, nodes=1, *settings, **options):
    config = load_run_config("llama2-437m", ["model.vocab_size=32000", *settings]).config
    return estimate_offer(config, Offer(ACCELERATORS[device], per_node, nodes, **options), 10**9)


@pytest.mark.parametrize("device", ACCELERATORS)
def test_every_device_has_links_of_which_no_more_is_reached_than_there_is(device):
    wiring = find_wiring(ACCELERATORS[device])
    for link in (wiring.inside, wiring.network):
        assert 0 < link.rate < link.vendor_rate and link.source


def test_gradients_of_copies_on_one_node_are_worked_out_by_hand():
    scale = estimate("H100", 8)["scale"]
    (gradients,) = scale["collectives"]
    assert (gradients["kind"], gradients["total_bytes"], gradients["ranks"]) == ("all-reduce", 4 * N, 8)
    on_the_wire = 2 * 7 / 8 * 4 * N / 370e9
    assert on_the_wire < scale["communication_s"] < 1.3 * on_the_wire
    # The embedding's gradient is there only at the end; the last micro-batch's backward pass hides the rest.
    assert scale["waiting_s"] == pytest.approx(scale["communication_s"] * OUTER / N, rel=1e-3)
    one = estimate("H100", 1)
    assert one["scale"] is None and one["ways"] is None
    assert scale["efficiency"] == pytest.approx(estimate("H100", 8)["tokens_per_s"] / 8 / one["tokens_per_s"])


def test_more_devices_and_slower_links_keep_less():
    found = [estimate("H100", 8, nodes)["scale"]["efficiency"] for nodes in (1, 2, 8)]
    assert 1 > found[0] > found[1] > found[2] > 0.8
    cards = [estimate("RTX 4090", 8, 2, network_gbit_s=rate)["scale"]["efficiency"] for rate in (400, 100, 10, 1)]
    assert cards == sorted(cards, reverse=True) and cards[0] > 0.9 > 0.3 > cards[-1]
    for way in estimate("RTX 4090", 8, 2)["ways"]:
        assert way["efficiency_without_overlap"] <= way["efficiency"] <= 1


def test_shards_within_a_node_spare_its_network():
    ddp, hybrid, fsdp = estimate("RTX 4090", 8, 2)["ways"]
    assert [ddp["parallel_mode"], hybrid["parallel_mode"], fsdp["parallel_mode"]] == ["ddp", "hybrid", "fsdp"]
    assert hybrid["efficiency"] > ddp["efficiency"] > fsdp["efficiency"]
    between = [each for each in hybrid["collectives"] if each["ranks"] == 2]
    assert [each["total_bytes"] for each in between] == [4 * N // 8]
    given = estimate("RTX 4090", 8, 2, "parallel.mode=fsdp", "parallel.shard_size=8")
    assert given["scale"]["efficiency"] == pytest.approx(hybrid["efficiency"])


def test_muon_sends_its_updates_and_shares_their_work():
    adamw, muon = (estimate("H100", 8, 1, f"optim.name={name}")["scale"] for name in ("adamw", "muon"))
    assert muon["communication_s"] > adamw["communication_s"]
    assert [each["during"] for each in muon["collectives"]] == ["last backward", "update"]
    few, many = (estimate("H100", count, 1, "optim.name=muon")["scale"]["update_s"] for count in (2, 8))
    assert many < few


def test_a_step_that_cannot_be_divided_has_no_efficiency():
    assert estimate("H100", 7)["scale"] is None
