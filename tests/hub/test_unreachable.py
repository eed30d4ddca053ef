"""Without a network: what is in the cache is opened at once, anything else is refused at once, in one line."""

import socket
import time

import pytest
from conftest import build_model, build_processor
from huggingface_hub import constants
from local_hub import LocalHub, point_clients_at

import mmt
from modeling_mmt.commands.import_dual_encoder import main as import_dual_encoder
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.hub_names import check_model_name
from modeling_mmt.evaluation.evaluate import open_checkpoint
from modeling_mmt.hub.publish import UploadError, publish


@pytest.fixture
def checkpoint(tmp_path):
    build_model().save_pretrained(tmp_path / "model")
    build_processor().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\n# mine\n")
    return tmp_path / "model"


@pytest.fixture
def cut_off(tmp_path, monkeypatch):
    """Point the clients of this process at a Hub that does not answer; nobody may wait to try again."""
    hub = LocalHub(tmp_path / "hub")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        hub.endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"

    def cut_off():
        point_clients_at(hub, tmp_path / "home", monkeypatch)
        monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waited for {seconds} s"))
        return hub.endpoint

    return cut_off


def test_a_name_that_is_not_in_the_cache_is_refused_at_once_in_one_line(cut_off, tmp_path, capsys):
    endpoint = cut_off()
    code = mmt.main(["import", "openai/clip", "--output_dir", str(tmp_path / "out")])
    message = capsys.readouterr().err.strip()
    assert code == 2 and "\n" not in message and "[Errno" in message
    assert message.startswith("mmt: openai/clip is not a folder here and not in the cache, and the Hub, ")
    assert f"the Hub, {endpoint}, could not be reached" in message


def test_the_second_name_of_a_pair_is_looked_for_too(cut_off, checkpoint, tmp_path):
    cut_off()
    with pytest.raises(InputError, match="^openai/clip is not a folder here"):
        import_dual_encoder(str(checkpoint), str(tmp_path / "out"), vision_model="openai/clip")


def test_where_the_hub_is_switched_off_the_switch_is_named(cut_off, monkeypatch):
    cut_off()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"could not be reached \(HF_HUB_OFFLINE is set\); connect, or give a folder"):
        check_model_name("openai/clip")


def test_a_folder_and_a_mistyped_path_are_not_asked_for(checkpoint, monkeypatch):
    monkeypatch.setattr("modeling_mmt.data.hub_names.get_session", lambda: pytest.fail("the Hub was asked"))
    check_model_name(str(checkpoint))
    with pytest.raises(InputError, match="reads as a path, so that the Hub is not asked"):
        check_model_name(str(checkpoint.parent / "absent"))


def test_what_was_downloaded_is_opened_without_waiting(cut_off, hub, checkpoint):
    publish(checkpoint, "org/model")
    wanted = open_checkpoint("org/model")[0].state_dict()
    cut_off()
    found = open_checkpoint("org/model")[0].state_dict()
    assert all(found[name].equal(wanted[name]) for name in wanted)


def test_publishing_says_that_the_hub_could_not_be_reached(cut_off, checkpoint):
    endpoint = cut_off()
    with pytest.raises(
        UploadError, match=rf"repeat the command \(the Hub, {endpoint}, could not be reached \(\[Errno"
    ):
        publish(checkpoint, "org/model")
