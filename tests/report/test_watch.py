"""A live page follows a run from loopback: it reads only new lines, writes nothing, and answers no other site."""

import http.client
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.command_line import packtrain
from tests.report.runs_on_disk import metrics, write_run

from packtrain.errors import ConfigError, RunError
from packtrain.report import watch
from packtrain.report.watch import LivePage, open_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run").folder


@pytest.fixture
def port(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(watch, "_LEAST_REST_S", 0.0)
    monkeypatch.setattr(watch, "_MOST_SHARE", 1e9)
    with open_server([folder]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def get(port: int, path: str = "/", **headers: str) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={key.replace("_", "-"): value for key, value in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, dict(answer.getheaders())


def more_steps(folder: Path, last: int) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(
            json.dumps(line) + "\n" for line in metrics(last, lr=1e-3, seed=0, floor=1.9) if line["step"] > 700
        )


def test_the_page_follows_the_run(folder: Path, port: int) -> None:
    status, text, headers = get(port)
    assert status == 200 and "700 of 700 steps logged" in text and "fetch(" in text
    assert get(port, If_None_Match=headers["ETag"])[0] == 304
    more_steps(folder, 900)
    status, text, again = get(port, If_None_Match=headers["ETag"])
    assert status == 200 and "900 of 700 steps logged" in text and again["ETag"] != headers["ETag"]


def test_only_this_machine_is_answered_under_its_own_name(port: int) -> None:
    assert get(port, Host=f"localhost:{port}")[0] == 200
    for host in (f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", ""):
        status, text, _ = get(port, Host=host)
        assert status == 403 and "<html" not in text
    assert get(port, "/etc/passwd")[0] == get(port, "/../config.toml")[0] == 404
    assert "Access-Control-Allow-Origin" not in get(port)[2]
    assert "default-src 'none'" in get(port)[2]["Content-Security-Policy"]


def test_the_run_is_only_read_and_each_line_once(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    page = LivePage([folder])
    page.refresh()
    reader = page._readers[0]
    read = reader.num_bytes_read
    page._rested_at = 0.0
    page.refresh()
    assert reader.num_bytes_read == read
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    more_steps(folder, 720)
    page._rested_at = 0.0
    page.refresh()
    added = (folder / "metrics.jsonl").stat().st_size
    assert "720 of 700 steps" in page.content.decode() and reader.num_bytes_read - read < added / 10


def test_a_page_is_followed_by_a_rest(folder: Path) -> None:
    page = LivePage([folder])
    page.refresh()
    first = page.version
    more_steps(folder, 720)
    page.refresh()
    assert page.version == first


def test_a_run_that_is_gone_is_said_and_the_server_stays(folder: Path, port: int) -> None:
    (folder / "config.toml").rename(folder / "config.away")
    status, text, _ = get(port)
    assert status == 503 and "does not contain a run" in text
    (folder / "config.away").rename(folder / "config.toml")
    assert get(port)[0] == 200


def test_what_cannot_be_watched_is_refused(folder: Path, dataset: Path, tmp_path: Path, port: int) -> None:
    with pytest.raises(ConfigError, match="leave --port out"):
        open_server([folder], port)
    with pytest.raises(ConfigError, match="not a port"):
        open_server([folder], 70_000)
    with pytest.raises(RunError, match="does not contain a run"):
        open_server([tmp_path])
    assert "does not change" in packtrain("report", dataset, "--watch").sentence
    assert "without --watch" in packtrain("report", folder, "--port", 0).sentence
    assert "writes no file" in packtrain("report", folder, "--watch", "--out", tmp_path / "x.html").sentence


def test_ctrl_c_ends_it_in_peace(folder: Path) -> None:
    command = [sys.executable, "-m", "packtrain", "report", str(folder), "--watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
        assert json.loads("".join(lines))["address"].startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "") and "error" not in err and "Traceback" not in err
