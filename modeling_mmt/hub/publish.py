"""Publish a checkpoint or a dataset on the Hub: one commit, checked before it is sent, tagged after.

    mmt publish runs/mmp_en org/name --tag v1.0
    mmt publish datasets_scripts/emoji9 org/emoji9 --repo_type dataset --tag v1.0 --script datasets_scripts/emoji9.py

The token is huggingface_hub's: `hf auth login`, or the variable `HF_TOKEN`. It is no option, so that no recipe, log or
card can hold it. `snapshots.py` is the way back.
"""

import json
import logging
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from safetensors import SafetensorError, safe_open

from modeling_mmt.data.errors import InputError
from modeling_mmt.data.files import file_hash
from modeling_mmt.data.hub_names import unreachable
from modeling_mmt.data.reading import SnapshotError, load_pinned_dataset, pinned_snapshot
from modeling_mmt.hub.card import METRICS_FILE, RECIPE, without_local_paths, write_card
from modeling_mmt.hub.secret_rules import Rules, found_in, own_secrets, token_rules

__all__ = ["PublishError", "SnapshotError", "UploadError", "load_pinned_dataset", "pinned_snapshot", "publish"]

logger = logging.getLogger(__name__)

# What is published; pickles (.bin, .pt, .ckpt), optimizer states and trackers' logs are not.
SUFFIXES = {".arrow", ".json", ".jsonl", ".jinja", ".md", ".model", ".onnx", ".onnx_data", ".parquet", ".png", ".py"}
SUFFIXES |= {".safetensors", ".txt", ".webp", ".yaml", ".yml"}
HIDDEN = {".eval_results"}
TRAINING_FOLDERS = re.compile(r"checkpoint-\d+|step-\d+.*|runs|logs|__pycache__")
# What an earlier revision may have and this one may not, beside files of this one: a loader would take it for its own.
STALE = {
    "model": re.compile(r"[^/]+\.safetensors|[^/]+\.safetensors\.index\.json|\w+_mmt\.py"),
    "dataset": re.compile(r".+\.(parquet|arrow)"),
}
TEXTS = {".json", ".jsonl", ".jinja", ".md", ".py", ".txt", ".yaml", ".yml"}


class PublishError(InputError):
    """The folder cannot be published as it is; nothing was sent. The message says what to correct."""


class UploadError(InputError, OSError):
    """The Hub did not take it, or did not answer. The message says why, and what to do."""


def publish(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    repo_type: str = "model",
    revision: str = "main",
    tag: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    scripts: Sequence[str | os.PathLike] = (),
    token: str | None = None,
) -> str:
    """Commit a folder to a repository, which is made if need be.

    The revision moves once, to a commit that holds every file, or it stays; whatever failed, the call can be repeated.
    Files that are there already are not sent again. Another's commit in between is an error, not overwritten.

    Args:
        folder: of a checkpoint (`save_pretrained`, `mmt train`'s `output_dir`), or of a dataset with its card.
        repo_id: `org/name`.
        repo_type: `"model"` or `"dataset"`.
        revision: branch to commit to; made from `main` if need be.
        tag: name of this version, such as `"v1.0"`; a tag never moves.
        private: whether a repository that is made is private; None is the owner's default.
        message: of the commit.
        scripts: programs that built the dataset; they go into `scripts/`, where the Hub takes none for a loader.
        token: where it is not the one that `hf auth login` stored.

    Returns:
        The commit.

    Raises:
        PublishError: the folder is incomplete, or a file holds an access token, or the tag is another version's.
        UploadError: the Hub said no or was out of reach; no version was changed, and the call can be repeated.
    """
    folder, api = Path(folder), HfApi(token=token)
    with TemporaryDirectory() as scratch:
        files = prepare(folder, Path(scratch), repo_id, repo_type, tag or revision)
        files |= {f"scripts/build_{Path(script).name}": Path(script) for script in scripts}
        check_card(folder, repo_id, files)
        check_secrets(files, token or get_token())

        message = message or f"Publish {tag or folder.resolve().name}"
        try:
            api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
            commit = _commit(api, repo_id, repo_type, revision, tag, files, message)
        except (HTTPError, RuntimeError) as error:  # huggingface_hub's for an upload that failed is the latter
            raise UploadError(f"{repo_id}: {_reason(error, revision)}") from error
    logger.info("%s is at %s, commit %s", repo_id, tag or revision, commit)
    return commit


def prepare(folder: Path, scratch: Path, repo_id: str, repo_type: str, revision: str) -> dict[str, Path]:
    """Path in the repository to file; a model is checked, its card rendered, its recipe rid of this machine's paths.

    Raises:
        PublishError: as `published_files` and `check_checkpoint`.
    """
    files = published_files(folder)
    if repo_type == "model":
        check_checkpoint(folder, files)
        if can_write_card(folder):
            write_card(folder, model_id=repo_id, revision=revision)
            files = published_files(folder)
        if RECIPE in files:
            recipe = without_local_paths(json.loads(files[RECIPE].read_text(encoding="utf-8")))
            files[RECIPE] = scratch / RECIPE
            files[RECIPE].write_text(json.dumps(recipe, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return files


def published_files(folder: Path) -> dict[str, Path]:
    """Path in the repository to file, for each file of a folder that is published.

    Raises:
        PublishError: there is no such folder, it holds nothing to publish, or a link in it leads out of it.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") and part not in HIDDEN for part in inside.parts)
        is_folder = path.is_dir()
        folders = inside.parts if is_folder else inside.parts[:-1]
        if hidden or any(TRAINING_FOLDERS.fullmatch(part) for part in folders):
            continue
        if path.is_symlink() and (is_folder or path.suffix in SUFFIXES):
            check_link(path, folder)
        if path.is_file() and path.suffix in SUFFIXES:
            files[inside.as_posix()] = path
    if not files:
        raise PublishError(f"{folder} holds nothing to publish; give the folder of a checkpoint or a dataset")
    return files


def check_link(link: Path, folder: Path):
    """Raise `PublishError` where a link leads out of the published folder: its target may be private.

    A snapshot in the Hub's cache consists of links to the `blobs` of its repository, which are its own.
    """
    target, whole = link.resolve(), folder.resolve()
    own = [whole, *([whole.parents[1] / "blobs"] if whole.parent.name == "snapshots" else [])]
    if link.is_dir() or not link.is_file() or not any(place in target.parents for place in own):
        what = "a folder" if link.is_dir() else "a file outside the folder" if link.is_file() else "nothing"
        raise PublishError(f"{link} is a link to {what}, {target}; put a copy in its place, or take it out")


def check_checkpoint(folder: Path, files: Mapping[str, Path]):
    """Raise `PublishError` where a loader would fail: no config, a missing shard, torn weights, missing code."""
    if "config.json" not in files:
        raise PublishError(f"{folder}: no config.json; give the folder of a checkpoint, as save_pretrained writes it")
    weights = [name for name in files if re.fullmatch(r"[^/]+\.safetensors", name)]
    if index := files.get("model.safetensors.index.json"):
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(wanted - set(weights)):
            raise PublishError(
                f"{folder}: {missing[0]} does not exist, but {index.name} lists it; save the model again"
            )
    elif "model.safetensors" not in weights:
        raise PublishError(f"{folder}: no model.safetensors; save the model with save_pretrained")
    for name in weights:
        try:
            with safe_open(files[name], framework="pt"):
                pass
        except SafetensorError as error:
            raise PublishError(f"{files[name]}: not readable ({error}); save the model again") from error
    auto_map = json.loads(files["config.json"].read_text(encoding="utf-8")).get("auto_map", {})
    for reference in auto_map.values():
        if f"{reference.partition('.')[0]}.py" not in files:
            raise PublishError(
                f"{folder}: config.json names the code {reference}, which does not exist; save it again"
            )


def can_write_card(folder: Path) -> bool:
    """Whether `mmt train` left what the card is rendered from."""
    metrics = folder / METRICS_FILE
    if not (metrics.is_file() and (folder / RECIPE).is_file()):
        return False
    return "video_extractors" in json.loads(metrics.read_text(encoding="utf-8"))


def check_card(folder: Path, repo_id: str, files: Mapping[str, Path]):
    """Raise `PublishError` where there is no card, or a script that the Hub would take for a loader."""
    if "README.md" not in files:
        raise PublishError(f"{folder}: no README.md; write a card first, with its licence between two lines of ---")
    if not files["README.md"].read_text(encoding="utf-8").startswith("---\n"):
        raise PublishError(f"{files['README.md']}: no front matter (licence, languages) between two lines of ---")
    loader = f"{PurePosixPath(repo_id).name}.py"
    if loader in files:
        raise PublishError(f"{files[loader]}: a script of the repository's own name breaks loading; rename it")


def check_secrets(files: Mapping[str, Path], token: str | None):
    """Raise `PublishError` where a file holds a secret of this environment, or what looks like anybody's.

    Texts are searched by all rules; weights, pictures and features for secrets of this environment and Hugging Face's
    tokens, since the shorter rules would find something in a gigabyte of noise.
    """
    own = own_secrets(token)
    every = token_rules() | own
    for name, path in files.items():
        if path.stat().st_size == 0:
            continue
        if path.suffix == ".parquet":
            check_rows(name, path, own, every)
        rules = every if path.suffix in TEXTS else own
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for what, byte in found_in(content, rules):
                raise PublishError(f"{name}, byte {byte}: {what}; take it out and revoke it")


def check_rows(name: str, path: Path, own: Rules, every: Rules):
    """Raise `PublishError` where a value of a Parquet file, whose bytes are compressed, holds a secret."""
    try:
        parquet = pq.ParquetFile(path)
        for batch in parquet.iter_batches(batch_size=1000):
            for column in batch.column_names:
                rules = every if "string" in str(batch.schema.field(column).type) else own
                for buffer in filter(None, batch[column].buffers()):
                    for what, _ in found_in(buffer, rules):
                        raise PublishError(f"{name}, column {column}: {what}; take it out and revoke it")
    except pa.ArrowException as error:
        raise PublishError(f"{path}: not readable ({error}); build the dataset again") from error


def _commit(
    api: HfApi,
    repo_id: str,
    repo_type: str,
    revision: str,
    tag: str | None,
    files: Mapping[str, Path],
    message: str,
) -> str:
    if tag and (tagged := _commit_of_tag(api, repo_id, repo_type, tag)):
        if _is_same(api, repo_id, repo_type, tagged, files):
            return tagged
        raise PublishError(
            f"{repo_id} has a tag {tag!r} of other files, and a tag never moves; choose another version"
        )
    try:
        head = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
    except RevisionNotFoundError:
        api.create_branch(repo_id, repo_type=repo_type, branch=revision)
        head = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
    operations: list[CommitOperationAdd | CommitOperationDelete]
    operations = [CommitOperationAdd(name, str(path)) for name, path in sorted(files.items())]
    folders = {PurePosixPath(name).parent for name in files}
    for name in api.list_repo_files(repo_id, repo_type=repo_type, revision=head):
        if STALE[repo_type].fullmatch(name) and name not in files and PurePosixPath(name).parent in folders:
            operations.append(CommitOperationDelete(name))
    commit = api.create_commit(
        repo_id, operations, commit_message=message, repo_type=repo_type, revision=revision, parent_commit=head
    ).oid
    if tag:
        api.create_tag(repo_id, repo_type=repo_type, tag=tag, revision=commit)
    return commit


def _reason(error: Exception, revision: str) -> str:
    response = error.response if isinstance(error, HfHubHTTPError) else None
    if response is not None and response.status_code == 412:
        return f"someone committed to {revision} meanwhile; look at it, then repeat"
    if response is not None and response.status_code in (401, 403):
        return "not published: no token, or one that may not write there; run `hf auth login`, or set HF_TOKEN"
    words = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if any(isinstance(cause, OSError) and not isinstance(cause, HfHubHTTPError) for cause in _causes(error)):
        words = unreachable(error)
    return f"not published, and what was there is kept; repeat the command ({words})"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _commit_of_tag(api: HfApi, repo_id: str, repo_type: str, tag: str) -> str | None:
    refs = api.list_repo_refs(repo_id, repo_type=repo_type)
    return next((ref.target_commit for ref in refs.tags if ref.name == tag), None)


def _is_same(api: HfApi, repo_id: str, repo_type: str, commit: str, files: Mapping[str, Path]) -> bool:
    tree = api.list_repo_tree(repo_id, repo_type=repo_type, revision=commit, recursive=True)
    there = {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in tree if isinstance(entry, RepoFile)
    }
    return all(name in there and file_hash(path, there[name]) == there[name] for name, path in files.items())
