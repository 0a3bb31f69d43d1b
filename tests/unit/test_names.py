"""Our package names are generic and clash for real: that ours are the ones that run is proven, not hoped.

PyPI has an ``events`` and a ``service``; a folder ``service/`` in the user's working directory shadows ``-m service``.
"""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("service", "events", "projections", "migrations", "lab")
DISTRIBUTION = "hublog-service"


@pytest.mark.parametrize("name", OURS)
def test_a_name_of_ours_is_this_checkout(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).resolve() == ROOT / name / "__init__.py"


@pytest.mark.parametrize("name", OURS)
def test_no_other_distribution_provides_a_name_of_ours(name: str) -> None:
    others = {
        distribution.name
        for distribution in importlib.metadata.distributions()
        if distribution.name != DISTRIBUTION
        and any(file.parts[0] in {name, f"{name}.py"} for file in distribution.files or ())
    }
    assert others == set()


@pytest.mark.parametrize(
    "command",
    [[sys.executable, "-P", "-m", "service"], [str(Path(sys.executable).with_name("hublog"))]],
    ids=["module", "command"],
)
def test_a_folder_of_the_same_name_where_the_user_stands_does_no_harm(command: list[str], tmp_path: Path) -> None:
    for name in OURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong one')")
    ran = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "the wrong one" not in ran.stdout + ran.stderr
    assert ran.returncode == 0
    assert "hublog up" in ran.stdout


def test_the_distribution_refuses_to_be_published() -> None:
    assert "Private :: Do Not Upload" in importlib.metadata.metadata(DISTRIBUTION).get_all("Classifier", [])


def test_the_command_line_starts_without_the_parts() -> None:
    """``--help`` is quick, and a gateway carries no SQLAlchemy."""
    look = "import sys, {module}; print(*sorted(sys.modules.keys() & {{'aiohttp', 'nats', 'sqlalchemy', 'psycopg'}}))"
    loaded = {
        module: subprocess.run(
            [sys.executable, "-P", "-c", look.format(module=module)], capture_output=True, text=True, check=True
        ).stdout.split()
        for module in ("service.cli", "service.process.gateway")
    }
    assert loaded == {"service.cli": [], "service.process.gateway": ["aiohttp", "nats", "psycopg"]}
