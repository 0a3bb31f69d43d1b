"""Where ``--data-dir`` leads: it is made where it is missing, and said to be unfit where it cannot be."""

from pathlib import Path
from typing import Any, NoReturn

import pytest

from lab import install
from lab.chaos import site
from lab.install import NotStarted, embedded


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders in which something was about to be started, and nothing was."""
    folders: list[Path] = []

    def refuse(home: Path, *_: Any, **__: Any) -> NoReturn:
        assert home.is_dir()
        folders.append(home)
        raise NotStarted("not here")

    monkeypatch.setattr(install, "_start", refuse)
    monkeypatch.setattr(site, "nats_cluster", refuse)
    return folders


@pytest.mark.parametrize("nats_nodes", [1, 3])
async def test_a_data_directory_that_is_missing_is_made(started: list[Path], tmp_path: Path, nats_nodes: int):
    parent = tmp_path / "not" / "there"
    with pytest.raises(NotStarted, match="not here"):
        async with site.own_site(1, "relaxed", parent, outlying=False, nats_nodes=nats_nodes):
            pass
    assert [home.parent for home in started] == [parent]
    assert list(parent.iterdir()) == []


async def test_a_data_directory_that_cannot_be_is_named(started: list[Path], tmp_path: Path):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(NotStarted, match=f"{taken} .*--data-dir"):
        async with embedded(1, "relaxed", taken):
            pass
    assert started == []
