"""What every benchmark leaves behind: a table and its numbers, with the command, the machine and the date."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from dualtower.markdown import markdown_table

RESULTS = Path(__file__).parent / "results"
READMES = (Path(__file__).parent / "README.md", Path(__file__).parent.parent / "README.md")

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def conditions() -> dict[str, str]:
    """The command, the machine and the versions behind a figure."""
    packages = ("dualtower", "torch", "timm", "transformers", "open_clip_torch", "lightly")
    versions = {name: _version(name) for name in packages}
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]  # that is my machine's
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    return {
        "command": command,
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if v),
        "date": datetime.date.today().isoformat(),
    }


def save_results(name: str, *, title: str, tables: Sequence[Table], values: dict[str, Any], notes: str = "") -> None:
    """Print the tables, write ``results/<name>.md`` and ``.json``, and renew the section of that name in a README."""
    run = conditions()
    body = "\n\n".join(markdown_table(*table) for table in tables)
    footer = "\n".join(f"- {key}: {f'`{value}`' if key == 'command' else value}" for key, value in run.items())
    text = f"# {title}\n\n{body}\n\n{notes + chr(10) * 2 if notes else ''}{footer}\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps({"values": values, **run}, indent=2) + "\n")
    renew_readme(name, readme_section(body, run, notes))
    print(text)


def readme_section(body: str, run: Mapping[str, str], notes: str = "") -> str:
    """A table with the words that its script says of it, the command, the machine, the versions and the date."""
    words = f"\n\n{notes}" if notes else ""
    return f"{body}{words}\n\n`{run['command']}`, {run['machine']}, {run['versions']}, {run['date']}."


def spread(values: Sequence[float], digits: int = 2, *, to: str = " to ") -> str:
    """Median and range, ``1.32 (1.30 to 1.35)``; of a single value there is no range."""
    middle = f"{median(values):.{digits}f}"
    return middle if len(values) < 2 else f"{middle} ({min(values):.{digits}f}{to}{max(values):.{digits}f})"


def counted(number: int, what: str) -> str:
    """``1 round``, ``3 rounds``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def ranked_sizes(protocol: Mapping[str, Any]) -> str:
    """What each direction ranks, in a sentence: without it their figures look comparable."""
    forward, backward = (protocol["directions"][name] for name in ("text_to_image", "image_to_text"))
    here, there = backward["gallery"], forward["gallery"]
    compared = f", which is {'easier' if here < there else 'harder'}: the two directions do not compare."
    return (
        f"Text→image: {forward['queries']:,} texts rank {forward['gallery']:,} images. Image→text: "
        f"{backward['queries']:,} images rank {backward['gallery']:,} texts" + (compared if here != there else ".")
    )


def renew_readme(name: str, section: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``, where a README has such a section."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    for path in READMES:
        text = path.read_text(encoding="utf-8")
        if begin in text and end in text:
            before, after = text.split(begin)[0], text.split(end)[1]
            path.write_text(f"{before}{begin}\n{section}\n{end}{after}", encoding="utf-8")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
