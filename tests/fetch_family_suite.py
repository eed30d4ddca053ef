"""Fetch transformers' shared test suite: the `tests/` folder of its sdist, which the wheel leaves out.

    python tests/fetch_family_suite.py cache/transformers_tests

The sdist is the release that constraints.txt pins, and its SHA-256 the one below. Nothing else of it is unpacked, and
nothing of it is built. Modules that the suite imports but the sdist lacks get stand-ins.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from hashlib import sha256
from pathlib import Path

VERSION = "5.23.0"
SHA256 = "19d647a4d5d903a7c644ca5cde2d86efc3dde7d8c687ae7988806ff2205efa71"
STAND_INS = {
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def main(folder: Path) -> Path:
    """Fill `folder/VERSION` unless it is there; returns it.

    Raises:
        ValueError: what was downloaded is not the release that was read.
    """
    target = folder / VERSION
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "--no-build-isolation", "--dest", work, f"transformers=={VERSION}"], check=True)
        (archive,) = Path(work).glob("*.tar.gz")
        found = sha256(archive.read_bytes()).hexdigest()
        if found != SHA256:
            raise ValueError(f"{archive.name} has SHA-256 {found}; expected {SHA256}: do not use it")
        root = f"transformers-{VERSION}"
        with tarfile.open(archive) as tar:
            members = [member for member in tar if member.name.startswith(f"{root}/tests/")]
            tar.extractall(work, members=members, filter="data")
        unpacked = Path(work, root)
        for name, code in STAND_INS.items():
            path = unpacked / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
        for package in {path.parent for path in (unpacked / "tests").rglob("*.py")}:
            (package / "__init__.py").touch()
        folder.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(unpacked, partial)
        partial.replace(target)
    return target


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
