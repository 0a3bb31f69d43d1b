"""The client is a library of its own: typed, small, and installed with what the service has locked."""

import subprocess
import sys
import tomllib
from pathlib import Path

import hublog

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_what_it_needs_is_in_the_services_locks() -> None:
    needs = {requirement.partition(">=")[0] for requirement in PROJECT["dependencies"]}
    service = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert needs == {"aiohttp", "msgspec"}
    for need in PROJECT["dependencies"]:
        narrower = [one for one in service if one == need or one.startswith(f"{need},")]
        assert narrower, f"{need}: the service needs the same, or less of it, so that one lock serves both"


def test_it_is_this_checkout_and_typed() -> None:
    package = Path(hublog.__file__).resolve().parent
    assert package == ROOT / "client" / "hublog"
    assert (package / "py.typed").exists()


def test_it_loads_nothing_of_the_service() -> None:
    look = (
        "import sys, hublog; print(*sorted(sys.modules.keys() & {'events', 'service', 'projections', 'lab', 'nats'}))"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", look], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def test_the_readme_shows_every_public_name_that_exists() -> None:
    assert sorted(hublog.__all__) == hublog.__all__
    assert all(hasattr(hublog, name) for name in hublog.__all__)
