"""The lowest versions that setup.py allows, as a constraints file: what `make test-floors` installs.

    python tests/floors.py test,report > floors.txt

Requirements without a floor are left to pip: they are tools, not part of what the package promises.
"""

import ast
import sys
from pathlib import Path

SETUP = Path(__file__).resolve().parents[1] / "setup.py"


def requirements(extras: list[str]) -> list[str]:
    """What an install with these extras asks for, in setup.py's order.

    Raises:
        SystemExit: no such extra.
    """
    values: dict[str, ast.expr] = {}
    for node in ast.parse(SETUP.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = node.value
    wanted, offered = ast.literal_eval(values["INSTALL_REQUIRES"]), ast.literal_eval(values["EXTRAS_REQUIRE"])
    if unknown := sorted(set(extras) - set(offered)):
        raise SystemExit(f"setup.py has no extra {unknown[0]!r}; it has {', '.join(sorted(offered))}")
    return wanted + [line for extra in extras for line in offered[extra]]


def floor(requirement: str) -> str | None:
    """`name[extra]>=1.2` to `name==1.2`; None where there is no floor."""
    name, _, version = requirement.partition(";")[0].partition(">=")
    return f"{name.partition('[')[0].strip()}=={version.partition(',')[0].strip()}" if version else None


if __name__ == "__main__":
    floors = [floor(line) for line in requirements([name for name in sys.argv[1:] for name in name.split(",")])]
    print("\n".join(line for line in floors if line))
