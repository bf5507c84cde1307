"""Is what was planned for a run shown beside what it did, from the same figures as `plan --after`, whatever its files hold?"""

import json
import re
from pathlib import Path

import pytest
from tests.report.runs_on_disk import write_run

from packtrain.plan.after import compare_with_plan, measure_metrics
from packtrain.report import figures
from packtrain.report.collect import collect
from packtrain.report.planned import planned
from packtrain.runs.layout import RunLayout, load_config
from packtrain.runs.metrics import read_metrics


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    return write_run(tmp_path / "run")


def cells(layout: RunLayout) -> list[str]:
    return re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", str(planned(collect(layout.folder))))


def test_the_figures_are_those_of_plan_after(layout: RunLayout) -> None:
    manifest = json.loads(layout.manifest.read_text())
    outcome = compare_with_plan(
        load_config(layout),
        manifest,
        measure_metrics(read_metrics(layout.metrics)),
        collect(layout.folder).events,
        None,
    )
    shown = cells(layout)
    assert shown[:4] == ["", "Estimated", "Measured", "Measured / estimated"]
    assert outcome["memory_bytes"]["estimated"] and outcome["tokens_per_s"]["measured"]
    assert shown[4:7] == ["Memory", *(figures.size(outcome["memory_bytes"][key]) for key in ("estimated", "measured"))]
    assert shown[8:11] == ["Tokens per second", "unknown", figures.exact(outcome["tokens_per_s"]["measured"])]


@pytest.mark.parametrize("hardware", [None, "a machine", {"world_size": "two"}, {"world_size": 0}, {"device_type": 7}])
def test_a_damaged_manifest_counts_as_none(layout: RunLayout, hardware: object) -> None:
    layout.manifest.write_text(json.dumps(json.loads(layout.manifest.read_text()) | {"hardware": hardware}))
    assert "Memory" in cells(layout)


def test_without_steps_or_configuration_a_sentence_says_so(layout: RunLayout) -> None:
    layout.config.write_text("not = [toml")
    assert "nothing can be planned" in str(planned(collect(layout.folder)))
    layout.metrics.write_text("")
    assert "Nothing to set beside the plan yet" in str(planned(collect(layout.folder)))
