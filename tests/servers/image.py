"""Follows a Dockerfile where no engine is: each step, as it is written, into a directory instead of a layer.

Owns the meaning of the few instructions that ours uses, and of ``.dockerignore``; an instruction, or a path, that it
does not know is refused, so that nothing is passed over in silence. The base image is this machine's Python. It refuses
to know what is in the image.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

PLACES = ("app", "build", "opt")
"""The folders at the root of the image that its steps may touch: they are moved below the stage's own directory."""
BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What the base image has as its ``PATH``."""
_ABSOLUTE = re.compile(r"(?<![\w.$}:/@-])/(?=[a-z])")
_PASSED_ON = ("HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")
STEP_TIMEOUT_S = 120


@dataclass
class Stage:
    """One ``FROM`` and what follows it. ``path`` is where a path of the image lies on this machine."""

    root: Path
    base: str
    base_path: str
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": BASE_PATH})
    workdir: str = "/"
    user: str = "root"
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    def path(self, inside: str) -> Path:
        """Raises: AssertionError where the image has nothing of ours."""
        place = os.path.normpath(os.path.join(self.workdir, inside))  # noqa: PTH118 a path of the image, not of ours
        assert place.split("/")[1] in PLACES, f"{inside} is outside of {PLACES}"
        return self.root / place.lstrip("/")

    def moved(self, text: str) -> str:
        """Text of the Dockerfile with each absolute path of the image put below ``root``."""
        for found in re.finditer(_ABSOLUTE.pattern + r"[\w./-]*", text):
            self.path(found[0])
        return _ABSOLUTE.sub(f"{self.root}/", text)

    def search_path(self) -> str:
        """``PATH``: what the image adds to it, below ``root``, and then the base image's."""
        added = self.environment["PATH"].removesuffix(BASE_PATH).split(":")
        return ":".join([*(str(self.path(part)) for part in added if part), self.base_path])

    def variables(self) -> dict[str, str]:
        """The environment that a process of the image has."""
        moved = {name: self.moved(value) for name, value in self.environment.items() if name != "PATH"}
        return {**moved, "PATH": self.search_path()}

    def command(self, *arguments: str) -> list[str]:
        """What is run for arguments after the image's name: the entrypoint, its program found as ``PATH`` says."""
        program, *rest = [*self.entrypoint, *(arguments or self.cmd)]
        found = shutil.which(program, path=self.search_path())
        assert found is not None, f"{program} is not in the image"
        return [found, *rest]


def follow(dockerfile: Path, into: Path) -> Stage:
    """Take every step; gives the last stage, which is the image. The context is the Dockerfile's folder."""
    context = dockerfile.parent
    base_path = f"{_base(into)}:{BASE_PATH}"
    rules = [line for line in (context / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage = Stage(into, "", base_path)
    with dockerfile.open("rb") as file:
        steps = DockerfileParser(fileobj=file, env_replace=False).structure
    for step in steps:
        value = step["value"]
        match step["instruction"]:
            case "COMMENT" | "LABEL":
                pass
            case "ARG":
                name, _, default = value.partition("=")
                arguments[name] = default
            case "FROM":
                base, _, name = value.partition(" AS ")
                base = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], base)
                stage = Stage(into / f"stage-{len(stages)}", base, base_path)
                stage.root.mkdir()
                stages[name or "image"] = stage
            case "ENV":
                for pair in shlex.split(value):
                    name, _, text = pair.partition("=")
                    stage.environment[name] = text.replace(f"${name}", stage.environment.get(name, ""))
            case "COPY":
                _copy(value, stage, stages, context, rules)
            case "RUN":
                _run(value, stage)
            case "WORKDIR":
                stage.workdir = value
                stage.path(".").mkdir(parents=True, exist_ok=True)
            case "USER":
                stage.user = value
            case "EXPOSE":
                stage.ports += map(int, value.split())
            case "ENTRYPOINT":
                stage.entrypoint = json.loads(value)
            case "CMD":
                stage.cmd = json.loads(value)
            case unknown:
                raise AssertionError(f"{unknown} is not an instruction that is followed here")
    return stage


def _base(into: Path) -> Path:
    """A folder with a ``python`` that is no virtual environment: what the base image has in its ``PATH``."""
    folder = into / "base"
    folder.mkdir()
    (folder / "python").symlink_to(Path(sys._base_executable).resolve())  # type: ignore[attr-defined]
    return folder


def _run(text: str, stage: Stage) -> None:
    passed_on = {name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith("PIP_")}
    done = subprocess.run(
        ["/bin/sh", "-ec", stage.moved(text)],
        env={**passed_on, **stage.variables()},
        cwd=stage.root,
        capture_output=True,
        text=True,
        timeout=STEP_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"RUN {text}\n{done.stdout}{done.stderr}"


def _copy(value: str, stage: Stage, stages: dict[str, Stage], context: Path, rules: list[str]) -> None:
    *flags, source, target = value.split()
    place = stage.path(target)
    place.parent.mkdir(parents=True, exist_ok=True)
    if flags:
        (name,) = (flag.removeprefix("--from=") for flag in flags)
        # Links: the stage below is not written any more, and some 100 MB are not copied.
        shutil.copytree(stages[name].path(source), place, symlinks=True, copy_function=os.link)
        return
    found = list(sent(context, source, rules))
    assert found, f"COPY {value}: nothing of it is sent to the builder"
    for file in found:
        below = file.relative_to(context / source)
        (place / below).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, place / below if below.parts else place)


def sent(context: Path, source: str, rules: list[str]) -> Iterator[Path]:
    """The files of ``source`` that ``.dockerignore`` leaves in the context."""
    top = context / source
    for path in [top] if top.is_file() else sorted(top.rglob("*")):
        if path.is_file() and not ignored(path.relative_to(context).as_posix(), rules):
            yield path


def ignored(path: str, rules: list[str]) -> bool:
    """The last rule that matches the path, or a folder that it lies in, decides."""
    parts = path.split("/")
    places = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    decided = False
    for rule in rules:
        kept = rule.startswith("!")
        pattern = re.escape(rule.removeprefix("!").strip("/"))
        pattern = pattern.replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(pattern, place) for place in places):
            decided = not kept
    return decided
