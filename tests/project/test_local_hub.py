"""The stand-in Hub keeps what the real client sends, says no to what it does not know, and fails when told to."""

import hashlib
import json
import urllib.error
import urllib.request

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from local_hub import LocalHub

REPO = "org/toy"
LARGE = bytes(range(256)) * 40  # .safetensors makes it a large file, whatever its size
CARD = "---\nlicense: mit\n---\n# toy\n"


@pytest.fixture
def api(hub):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(REPO)
    return api


def add(api, files, **options):
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return api.create_commit(REPO, operations, commit_message="add", **options).oid


def fetch(hub, tmp_path, name, **options):
    path = hf_hub_download(REPO, name, endpoint=hub.endpoint, cache_dir=tmp_path / "cache", **options)
    with open(path, "rb") as file:
        return file.read()


def test_what_is_committed_comes_back_by_branch_tag_commit_and_pull_request(hub, api, tmp_path):
    first = add(api, {"README.md": CARD.encode(), "model.safetensors": LARGE, "data/one.json": b"{}"})
    api.create_tag(REPO, tag="v1.0")
    api.create_branch(REPO, branch="next", revision="v1.0")
    second = add(api, {"model.safetensors": LARGE[::-1]}, parent_commit=first)
    proposed = api.create_commit(
        REPO, [CommitOperationAdd("data/one.json", b"[1]")], commit_message="propose", create_pr=True
    )
    assert proposed.pr_revision == "refs/pr/1"
    for revision in ("v1.0", "next", first):
        assert fetch(hub, tmp_path, "model.safetensors", revision=revision) == LARGE
    for revision in ("main", second, "refs/pr/1"):
        assert fetch(hub, tmp_path, "model.safetensors", revision=revision) == LARGE[::-1]
    assert fetch(hub, tmp_path, "data/one.json", revision="refs/pr/1") == b"[1]"
    assert fetch(hub, tmp_path, "data/one.json") == b"{}"
    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.tags + refs.branches} == {
        "v1.0": first,
        "main": second,
        "next": first,
    }
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)][:2] == [second, first]


def test_the_listing_has_what_the_client_checks_downloads_by(api):
    add(api, {"a.json": b"{}", "data/b.safetensors": LARGE, "data/deep/c.txt": b"c"})
    tree = {entry.path: entry for entry in api.list_repo_tree(REPO, recursive=True)}
    assert set(tree) == {".gitattributes", "a.json", "data", "data/b.safetensors", "data/deep", "data/deep/c.txt"}
    assert tree["data/b.safetensors"].lfs.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert tree["a.json"].blob_id == hashlib.sha1(b"blob 2\0{}").hexdigest()
    assert {entry.path for entry in api.list_repo_tree(REPO)} == {".gitattributes", "a.json", "data"}
    assert {entry.path for entry in api.list_repo_tree(REPO, "data")} == {"data/b.safetensors", "data/deep"}
    found = api.get_paths_info(REPO, ["a.json", "data", "absent"])
    assert [entry.path for entry in found] == ["data", "a.json"]


def test_a_commit_without_a_change_leaves_the_revision(api):
    first = add(api, {"a.json": b"{}", "b.safetensors": LARGE})
    assert add(api, {"a.json": b"{}", "b.safetensors": LARGE}) == first


def test_deleted_files_are_gone_and_stay_in_the_old_revision(hub, api, tmp_path):
    first = add(api, {"a.json": b"{}", "data/b.txt": b"b"})
    api.create_commit(REPO, [CommitOperationDelete("data/", is_folder=True)], commit_message="drop")
    with pytest.raises(EntryNotFoundError):
        fetch(hub, tmp_path, "data/b.txt")
    assert fetch(hub, tmp_path, "data/b.txt", revision=first) == b"b"


def test_a_large_file_may_come_in_parts(hub, api, tmp_path):
    hub.part_bytes = 1000
    add(api, {"model.safetensors": LARGE})
    assert sum("/parts/" in path for _, path, _ in hub.requests) == 11
    assert fetch(hub, tmp_path, "model.safetensors") == LARGE


def test_a_part_of_a_file_can_be_asked_for(hub, api):
    add(api, {"model.safetensors": LARGE})
    url = f"{hub.endpoint}/{REPO}/resolve/main/model.safetensors"
    request = urllib.request.Request(url, headers={"Range": "bytes=3-9"})
    with urllib.request.urlopen(request) as answer:
        assert (answer.status, answer.read()) == (206, LARGE[3:10])
        assert answer.headers["Content-Range"] == f"bytes 3-9/{len(LARGE)}"


def test_a_stale_parent_a_taken_tag_and_unknown_names_are_refused(hub, api, tmp_path):
    first = add(api, {"a.json": b"{}"})
    add(api, {"a.json": b"[]"})
    with pytest.raises(HfHubHTTPError, match="412"):
        add(api, {"a.json": b"[1]"}, parent_commit=first)
    api.create_tag(REPO, tag="v1.0")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(REPO, tag="v1.0")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/absent")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="v9")
    with pytest.raises(EntryNotFoundError):
        fetch(hub, tmp_path, "absent.json")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)
    with pytest.raises(ValueError, match="metadata"):
        add(api, {"README.md": b"no front matter"})


def test_writing_needs_the_token(hub, api):
    for token in (False, "hf_wrong"):
        with pytest.raises(HfHubHTTPError, match="401"):
            HfApi(endpoint=hub.endpoint, token=token).create_repo("org/other")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/models/org/toy/likers", None),
        ("POST", "/api/repos/create", {"name": "x", "colour": "red"}),
        ("POST", "/api/repos/create", {"name": 3}),
        ("POST", "/api/models/org/toy/tag/main", {}),
        ("POST", "/api/models/org/toy/commit/main", {"key": "header", "value": {"summary": "s", "author": "me"}}),
        ("POST", "/api/models/org/toy/preupload/main", {"files": [{"path": "x"}]}),
        ("POST", "/org/toy.git/info/lfs/objects/batch", {"operation": "upload", "transfers": [], "objects": [{}]}),
    ],
)
def test_what_it_does_not_know_is_refused_with_words_and_remembered(hub, api, method, path, body):
    headers = {"Authorization": f"Bearer {hub.token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with pytest.raises(urllib.error.HTTPError) as failed:
        urllib.request.urlopen(urllib.request.Request(hub.endpoint + path, data, headers, method=method))
    assert 400 <= failed.value.status < 500
    assert len(json.loads(failed.value.read())["error"]) > 10
    assert len(hub.refused) == 1
    hub.refused.clear()


@pytest.mark.parametrize("path", ["../evil", "a/../../evil", "/etc/evil", ".git/config", "a//b"])
def test_no_file_can_be_committed_outside_the_repository(hub, api, path):
    line = {"key": "file", "value": {"path": path, "content": "", "encoding": "base64"}}
    body = json.dumps({"key": "header", "value": {"summary": "s"}}) + "\n" + json.dumps(line)
    request = urllib.request.Request(f"{hub.endpoint}/api/models/{REPO}/commit/main", body.encode(), method="POST")
    request.add_header("Authorization", f"Bearer {hub.token}")
    with pytest.raises(urllib.error.HTTPError) as failed:
        urllib.request.urlopen(request)
    assert failed.value.status == 400


def test_a_token_on_its_way_to_another_host_is_an_error(hub, api):
    add(api, {"model.safetensors": LARGE})
    url = f"{hub.large_files_host}/large/{hashlib.sha256(LARGE).hexdigest()}"
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {hub.token}"}))
    assert len(hub.refused) == 1
    hub.refused.clear()


@pytest.mark.parametrize("fault", ["upload 500", "upload dropped", "download dropped", "download slow"])
def test_the_client_gets_over_a_passing_fault(hub, api, tmp_path, fault):
    hub.faults[fault] = 1
    add(api, {"model.safetensors": LARGE})
    assert fetch(hub, tmp_path, "model.safetensors") == LARGE
    assert hub.faults[fault] == 0


@pytest.mark.parametrize("fault", ["upload damaged", "commit 500", "commit dropped", "overtaken"])
def test_a_fault_that_the_client_cannot_get_over_leaves_the_old_revision(hub, api, fault):
    head = add(api, {"a.json": b"{}"})
    hub.faults[fault] = 1
    with pytest.raises(Exception):  # noqa: B017 - the client's errors are of many kinds
        add(api, {"model.safetensors": LARGE}, parent_commit=head)
    assert hub.faults[fault] == 0
    files = {entry.path for entry in api.list_repo_tree(REPO)}
    assert files == {".gitattributes", "a.json"} | ({"notes.txt"} if fault == "overtaken" else set())


def test_the_repository_is_there_after_a_restart(hub, api, tmp_path):
    head = add(api, {"model.safetensors": LARGE})
    with LocalHub(tmp_path / "hub") as again:
        assert HfApi(endpoint=again.endpoint).model_info(REPO).sha == head
        assert fetch(again, tmp_path, "model.safetensors", revision=head) == LARGE
