"""The report of damage: every score as CSV, and the worst images with their heat maps."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

from dualtower.curation.damage.detection import DamageReport
from dualtower.data.transforms.images import ImageSettings, open_image, to_size
from dualtower.evaluation.reports.figures import draw_heat, save_png
from dualtower.files import text_file_atomically, write_text_atomically
from dualtower.markdown import markdown_table

__all__ = ["write_damage"]


def write_damage(found: DamageReport, settings: ImageSettings, folder: Path, *, number: int = 50) -> str:
    """Write ``scores.csv`` of all images, and ``report.md`` with the worst ones beside their heat maps.

    Args:
        found: See `find_damage`.
        settings: The model's, as heat maps are of the image that it sees.
        folder: To write into.
        number: Images to list.

    Returns:
        The table of the report, and what to know of it.
    """
    with text_file_atomically(folder / "scores.csv") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "score", "damaged"])
        for row, score, damaged in zip(found.photos.ids, found.scores.tolist(), found.damaged.tolist(), strict=True):
            writer.writerow([row, f"{score:.6g}", "" if found.threshold is None else int(damaged)])
    lines = []
    for place in range(min(number, len(found.scores))):
        shown = ""
        if place < len(found.heat):
            whole = to_size(open_image(found.photos.images[place]), settings)
            save_png(
                _beside(whole, draw_heat(whole, found.heat[place], found.usual_heat)),
                folder / f"images/{place + 1}.png",
            )
            shown = f"![](images/{place + 1}.png)"
        mark = "" if found.threshold is None else "damaged" if found.damaged[place] else "whole"
        lines.append([shown, found.photos.ids[place].replace("<", "&lt;"), f"{found.scores[place]:.4g}", mark])
    header = ["", "id", "score", "looks"]
    words, table = _words(found), markdown_table(header, lines, left=(0, 1, 3))
    write_text_atomically(folder / "report.md", f"# Damage by `{found.method}`\n\n{words}\n\n{table}\n")
    plain = [line[1:] if found.threshold else line[1:-1] for line in lines]
    names = header[1:] if found.threshold else header[1:-1]
    return f"{markdown_table(names, plain, left=(0, 2))}\n\n{words}"


def _words(found: DamageReport) -> str:
    """What was compared with what, and how sure it is."""
    count = len(found.scores)
    if found.threshold is None:
        first = (
            f"{count:,} images of {found.photos.name}, each compared with the {found.memory_rows:,} or so of the other "
            "half. Scores say how many median absolute deviations an image lies beyond the median; without clean rows "
            "(--clean) there is no threshold."
        )
    else:
        first = (
            f"{int(found.damaged.sum()):,} of {count:,} images of {found.photos.name} look damaged beside "
            f"{found.memory_rows:,} clean ones of {found.clean}. {found.threshold.sentence()}"
        )
    left_out = f"\n\nLeft out {len(found.skipped):,} images; the first: {found.skipped[0]}" if found.skipped else ""
    return f"{first} Heat shows where the image is unlike clean ones.{left_out}"


def _beside(one: Image.Image, other: Image.Image) -> Image.Image:
    """Both images, enlarged to be looked at, side by side."""
    scale = max(1, round(160 / max(one.size)))
    width, height = one.width * scale, one.height * scale
    pair = Image.new("RGB", (2 * width + 4, height), "white")
    for place, image in enumerate((one, other)):
        pair.paste(image.resize((width, height), Image.Resampling.BICUBIC), (place * (width + 4), 0))
    return pair
