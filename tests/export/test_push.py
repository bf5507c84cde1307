"""An export is uploaded on request alone, whole, privately; and what the hub or the network refuses is one sentence."""

import json
import os
import subprocess
import sys

import huggingface_hub.constants
import pytest

from packtrain.errors import ConfigError, ExportError
from packtrain.export.publish import seal, staged
from packtrain.export.push import upload
from tests.export.hub import serve_stand_in
from tests.export.test_cli import invoke


@pytest.fixture
def hub(monkeypatch):
    with serve_stand_in() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        # Xet is a service of its own; without it, weights go by LFS.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield hub


@pytest.fixture
def exported(tmp_path):
    with staged(tmp_path / "out", overwrite=False, needed_bytes=1) as folder:
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 8)
        (folder / "README.md").write_text("a card")
        seal(folder, {"format": "hf", "datasets": [{"folder": "/home/me/texts", "hash": "d" * 64}]})
    return tmp_path / "out"


def test_every_file_arrives_in_a_private_repository(hub, exported):
    address = upload(exported, "me/mine")
    assert address == f"{hub.endpoint}/me/mine" and hub.private == {"me/mine": True}
    uploaded = {name: data for name, data in hub.files["me/mine"].items() if name != ".gitattributes"}
    sealed = json.loads(uploaded.pop("packtrain.json"))
    assert uploaded == {path.name: path.read_bytes() for path in exported.iterdir() if path.name != "packtrain.json"}
    assert sealed["files"] == json.loads((exported / "packtrain.json").read_text())["files"]
    assert sealed["datasets"] == [{"hash": "d" * 64}], "where it was on this machine stays here"
    assert hub.tokens == {"Bearer hf_secret"}


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize(("transfer", "num_puts"), [("basic", 1), ("multipart", 4)])
def test_weights_go_by_lfs_in_parts_if_the_hub_says_so_and_only_once(hub, exported, transfer, num_puts):
    """The hub asks for parts above 5 GB, the most that one request may have; here they are of 512 bytes."""
    hub.lfs = transfer
    weights = (exported / "model.safetensors").read_bytes()
    upload(exported, "me/mine")
    assert hub.num_puts == num_puts and hub.files["me/mine"]["model.safetensors"] == weights
    assert list(hub.objects.values()) == [weights] and "README.md" in hub.files["me/mine"]
    upload(exported, "me/other")
    assert hub.num_puts == num_puts, "weights that the hub has are not sent again"
    assert hub.files["me/other"]["model.safetensors"] == weights


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("transfer", ["basic", "multipart"])
def test_weights_that_do_not_arrive_are_a_sentence_and_nothing_is_committed(hub, exported, transfer):
    hub.lfs, hub.lfs_refuses_with = transfer, 403
    with pytest.raises(ExportError, match=rf"packtrain export {exported} --push me/mine") as caught:
        upload(exported, "me/mine")
    assert "\n" not in str(caught.value) and hub.files["me/mine"] == {}
    hub.lfs_refuses_with, hub.has_no_room = None, True
    with pytest.raises(ExportError, match=r"the hub did not take the files \(.*you have no room left"):
        upload(exported, "me/mine")
    hub.has_no_room = False
    upload(exported, "me/mine")
    assert set(hub.files["me/mine"]) == {path.name for path in exported.iterdir()}


def test_a_second_upload_replaces_the_first_and_public_is_a_choice(hub, exported):
    upload(exported, "me/open", public=True)
    hub.files["me/open"]["model-00001-of-00002.safetensors"] = b"of an earlier export"
    upload(exported, "me/open")
    assert hub.private == {"me/open": False}
    assert set(hub.files["me/open"]) == {path.name for path in exported.iterdir()}


def test_what_is_not_a_whole_export_is_not_uploaded(hub, exported, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExportError, match="is not a whole export"):
        upload(tmp_path / "folder", "me/mine")
    (exported / "README.md").write_text("another card")
    with pytest.raises(ExportError, match=r"README\.md has changed since it was exported"):
        upload(exported, "me/mine")
    (exported / "README.md").unlink()
    with pytest.raises(ExportError, match="is not a whole export"):
        upload(exported, "me/mine")
    assert hub.private == {}


@pytest.mark.parametrize(
    ("code", "says"),
    [(401, "token is not valid"), (403, "may not write to me/mine"), (404, "refused"), (400, "refused")],
)
def test_what_the_hub_refuses_is_a_sentence_with_the_way_to_try_again(hub, exported, code, says):
    hub.refuses_with = code
    with pytest.raises(ExportError, match=f"the hub refused the upload .*{says}.*|{says}.*") as caught:
        upload(exported, "me/mine")
    assert f"packtrain export {exported} --push me/mine" in str(caught.value)


def test_no_token_no_network_and_offline_mode_are_sentences(exported, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(ExportError, match="the hub cannot be reached"):
        upload(exported, "me/mine")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(exported / "no-token"))
    with pytest.raises(ExportError, match=r"no token to upload .* set HF_TOKEN"):
        upload(exported, "me/mine")


@pytest.mark.parametrize("repo", ["mine", "a/b/c", "me/", "/mine", "me/my model", "me/..", ""])
def test_a_name_without_an_owner_is_refused(exported, repo):
    with pytest.raises(ExportError, match="write --push owner/name"):
        upload(exported, repo)


def test_the_command_uploads_a_finished_export_to_hf_endpoint(exported):
    with serve_stand_in() as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "packtrain", "export", str(exported), "--push", "me/mine"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"uploaded to {hub.endpoint}/me/mine\n"), done.stderr
        assert hub.private == {"me/mine": True} and "model.safetensors" in hub.files["me/mine"]


def test_options_without_effect_are_refused_before_anything_is_written(make_run, tmp_path, exported):
    run = make_run().layout.folder
    for words, says in (
        ((run,), "write --out"),
        ((run, "--push", "me/mine"), "is not an export made by packtrain"),
        ((exported, "--push", "me/mine", "--format", "gguf"), "--format applies only to a new export"),
        ((run, "--out", tmp_path / "new", "--public"), "--public applies only to --push"),
    ):
        result = invoke(*words)
        assert isinstance(result.exception, ConfigError) and says in str(result.exception)
    assert isinstance(invoke(run, "--out", tmp_path / "new", "--push", "mine").exception, ExportError)
    assert not (tmp_path / "new").exists()
