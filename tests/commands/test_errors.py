"""What a program says when something is wrong, and with which exit code it ends."""

import pytest

from modeling_mmt.commands.errors import exit_code_of
from modeling_mmt.data.errors import InputError, naming_input
from modeling_mmt.data.feature_store import MissingClipError
from modeling_mmt.data.weights import CheckpointError
from modeling_mmt.data.wheels import WheelError
from modeling_mmt.evaluation.evaluate import CorpusError
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.hub.publish import PublishError, UploadError
from modeling_mmt.search.index import SearchIndexError
from modeling_mmt.training.recipe import RecipeError
from modeling_mmt.video_decoding_mmt import read_clip

OURS = [CheckpointError, CorpusError, MissingClipError, WheelError, PublishError, RecipeError]
OURS += [SearchIndexError, UploadError]


def raising(error):
    def call():
        raise error

    return call


@pytest.mark.parametrize("kind", OURS)
def test_our_own_errors_are_one_line_and_code_2(kind, capsys):
    assert exit_code_of("mmt", raising(kind("a.yaml: seed is -1;\n give 0 or\x1b[2J more"))) == 2
    assert capsys.readouterr().err == "mmt: a.yaml: seed is -1; give 0 or\N{REPLACEMENT CHARACTER}[2J more\n"


def test_what_a_shipped_file_or_the_disk_says_is_one_line_too(tmp_path, capsys):
    (tmp_path / "talk.mp4").write_bytes(b"no video")
    assert exit_code_of("mmt", lambda: len(read_clip(tmp_path / "talk.mp4", FrameSampling(8)))) == 2
    assert "talk.mp4" in (line := capsys.readouterr().err) and line.count("\n") == 1
    assert exit_code_of("mmt", raising(OSError(28, "No space left"))) == 2
    assert capsys.readouterr().err == "mmt: [Errno 28] No space left\n"


def test_a_password_in_a_url_is_not_printed(capsys):
    error = OSError("s3://bob:sec:ret@host/x: no bob:sec:ret@host; s3://bucket/a:b@c is")
    assert exit_code_of("mmt", raising(error)) == 2
    assert capsys.readouterr().err == "mmt: s3://bob:***@host/x: no bob:***@host; s3://bucket/a:b@c is\n"


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError(), KeyError("x")])
def test_any_other_error_keeps_its_type_and_its_traceback(error):
    with pytest.raises(type(error)) as raised:
        exit_code_of("mmt", raising(error))
    assert raised.value is error


def test_traceback_shows_where_our_errors_come_from():
    with pytest.raises(RecipeError, match="wrong"):
        exit_code_of("mmt", raising(RecipeError("wrong")), traceback=True)


def test_other_endings_have_their_codes(capsys):
    assert exit_code_of("mmt", raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "mmt: interrupted\n"
    assert [exit_code_of("mmt", lambda code=code: code) for code in (None, 0, 1)] == [0, 0, 1]
    with pytest.raises(SystemExit) as stop:
        exit_code_of("train.py", raising(SystemExit(75)))
    assert stop.value.code == 75


def test_a_librarys_error_names_what_was_opened_and_stays_its_cause():
    with pytest.raises(
        RecipeError, match=r"^encoder: KeyError: 'model'; check that the file is complete.*\(test_errors.py"
    ) as raised:
        with naming_input("encoder", RecipeError):
            raise KeyError("model")
    assert isinstance(raised.value.__cause__, KeyError)
    with pytest.raises(CheckpointError, match="^model.safetensors: torn$"):
        with naming_input("model.safetensors"):
            raise CheckpointError("model.safetensors: torn")
    with pytest.raises(InputError, match=r"^a.json: no such file \("):
        with naming_input("a.json"):
            raise OSError("no such file")
