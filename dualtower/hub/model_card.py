"""The README of a model folder, written from the run that made the model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from dualtower.config import to_dict
from dualtower.data.cards import DataCard, load_card
from dualtower.data.transforms.attributes import AttributesConfig
from dualtower.markdown import markdown_table

if TYPE_CHECKING:
    from dualtower.models.config import ModelConfig

__all__ = ["ModelCard", "with_name"]

_BOTH, _IMAGE, _TEXT, _ATTRIBUTES = ("image", "text"), ("image",), ("text",), ()
_TAGS = {
    _BOTH: ["dualtower", "dual-encoder", "text-to-image-retrieval", "product-retrieval"],
    _IMAGE: ["dualtower", "image-feature-extraction", "product-retrieval"],
    _TEXT: ["dualtower", "sentence-similarity", "product-retrieval"],
    _ATTRIBUTES: ["dualtower", "tabular", "product-retrieval"],
}
_WHAT = {
    _BOTH: "A dual tower that embeds product texts and product images into one space",
    _IMAGE: "An image tower that embeds product images, and no texts",
    _TEXT: "A text tower that embeds product texts, and no images",
    _ATTRIBUTES: "An autoencoder of product attributes, which encodes them into one code per product",
}


@dataclass(frozen=True)
class ModelCard:
    """What is known of a model besides its weights. An empty card still says what the model is and how to load it.

    Attributes:
        data: Card of the catalog that it was trained and measured on.
        metrics: Direction -> metric -> ``{"value", "low", "high"}``, as in a run's ``metrics.json``.
        table: The same figures as a Markdown table.
        protocol: What was measured on what.
        run: Config of the run as plain values.
        license: License of the weights, by its Hub name (``apache-2.0``); None leaves it out, it is not the data's.
    """

    data: DataCard | None = None
    metrics: Mapping[str, Mapping[str, Mapping[str, float | None]]] = field(default_factory=dict)
    table: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None

    @classmethod
    def of_run(cls, config: Any, report: Any = None, *, table: str = "", license: str | None = None) -> ModelCard:
        """Make the card of a finished run.

        Args:
            config: Its `RunConfig`.
            report: Its evaluation `Report`, or None for a model that has not been measured yet, or not by retrieval.
            table: What was measured instead, as Markdown.
            license: License of the weights.
        """
        if report is None:
            return cls(load_card(config.data.card), table=table, run=to_dict(config), license=license)
        figures = report.to_dict()
        protocol = figures.pop("protocol")
        return cls(load_card(config.data.card), figures, report.table(), protocol, to_dict(config), license)

    def to_markdown(self, *, name: str, model: ModelConfig, fingerprint: str) -> str:
        """Render the card for the model `name` (a folder, or ``user/name`` on the Hub)."""
        header = yaml.safe_dump(self._front_matter(name, model), sort_keys=False, allow_unicode=True)
        sections = [
            f"---\n{header}---",
            f"# {name.rstrip('/').split('/')[-1]}",
            f"{_WHAT[model.modalities]}, made with [dualtower](https://pypi.org/project/dualtower/).",
            _how_to_load(name, model),
            _architecture(model, fingerprint),
        ]
        if self.table:
            sections.append(f"## Results\n\n{self.table}\n\nIn brackets: 95 % intervals.")
        elif self.run and model.modalities:
            sections.append(_unmeasured(name))
        if self.protocol:
            sections.append(f"## Protocol\n\n{_yaml_block(self.protocol)}")
        if self.data:
            sections.append(_data_section(self.data))
        if self.run:
            settings = {k: v for k, v in self.run.items() if k != "model"}  # config.json has the model
            sections.append(f"## Training\n\n{_yaml_block(settings)}")
        return "\n\n".join(sections) + "\n"

    def _front_matter(self, name: str, model: ModelConfig) -> dict[str, Any]:
        """Metadata that the Hub reads (https://huggingface.co/docs/hub/model-cards)."""
        header: dict[str, Any] = {"library_name": "dualtower", "tags": _TAGS[model.modalities]}
        if self.license:
            header["license"] = self.license
        if self.data:
            header["language"] = list(self.data.languages)
            header["datasets"] = [self.data.source.hub] if self.data.source.hub else None
        if self.metrics:
            header["metrics"] = sorted({metric for figures in self.metrics.values() for metric in figures})
            header["model-index"] = [{"name": name.rstrip("/").split("/")[-1], "results": self._results()}]
        return {key: value for key, value in header.items() if value}

    def _results(self) -> list[dict[str, Any]]:
        title = self.data.title if self.data else "not named"
        kind = (self.data.source.hub if self.data else None) or "catalog"
        return [
            {
                "task": {"type": "retrieval", "name": direction.replace("_", " ")},
                "dataset": {"type": kind, "name": title},
                "metrics": [
                    {"type": metric, "name": metric, "value": round(figure["value"], 4)}
                    for metric, figure in figures.items()
                    if figure["value"] is not None
                ],
            }
            for direction, figures in self.metrics.items()
        ]


def with_name(readme: str, name: str) -> str:
    """Let a rendered card's example load the model from its new place."""
    return re.sub(r'from_pretrained\("[^"\n]*"\)', lambda _: f"from_pretrained({json.dumps(name)})", readme)


def _how_to_load(name: str, model: ModelConfig) -> str:
    texts = 'texts = model.encode_text(["blue striped ceramic mug", "red dress"])  # float32 [2, D]'
    images = 'images = model.encode_image(["mug.jpg"])  # paths, bytes or PIL images'
    lines = {
        _BOTH: [texts, images, "scores = model.similarity(images, texts)  # [1, 2], more is more alike"],
        _IMAGE: [images, "scores = model.similarity(images, images)  # [1, 1], more is more alike"],
        _TEXT: [texts, "scores = model.similarity(texts, texts)  # [2, 2], more is more alike"],
        _ATTRIBUTES: [f"codes = model.encode_attributes([{_example(model)}])  # float32 [1, D]"],
    }[model.modalities]
    return f"""## How to load

```python
from dualtower import DualTower  # pip install dualtower

model = DualTower.from_pretrained({json.dumps(name)})
{chr(10).join(lines)}
```"""


def _example(model: ModelConfig) -> str:
    """A product with a value of each of the first attributes that an encoder reads."""
    known = model.attribute_encoder.attributes if model.attribute_encoder else AttributesConfig()
    values: dict[str, Any] = {name: values[0] for name, values in known.categories.items()}
    values |= {name: round(mean, 2) for name, (mean, _) in known.numbers.items()}
    return json.dumps(dict(list(values.items())[:2]), ensure_ascii=False)


def _unmeasured(name: str) -> str:
    return f"""## Results

None yet: the model was saved before it was measured. To measure it, type
`dualtower evaluate {name} --data.card CARD`."""


def _architecture(model: ModelConfig, fingerprint: str) -> str:
    settings, text, image = model.image_settings, model.text, model.image
    rows = [["text tower", "none"], ["image tower", "none"]]
    if text is not None:
        origin = f" from `{text.pretrained}`" if text.pretrained else ""
        rows[0][1] = f"`{text.name}`{origin}, {text.vocab_size:,} tokens, texts of up to {text.max_length} tokens"
    if image is not None:
        weights = f" from `{image.pretrained}`" if isinstance(image.pretrained, str) else ""
        weights = " with timm's pretrained weights" if image.pretrained is True else weights
        rows[1][1] = f"`{image.name}`{weights}, {settings.height}x{settings.width} pixels ({settings.resize})"
    space = "shared space" if len(model.modalities) > 1 else "space"
    said = f"{model.embed_dim} dimensions, {model.head} heads, {model.similarity} similarity"
    if model.attribute_encoder is not None:
        rows.append(["attributes", ", ".join(f"`{name}`" for name in model.attribute_encoder.attributes.names)])
        space, said = "code", f"{model.embed_dim} dimensions, of unit length"
    rows += [[space, said], ["fingerprint", f"`{fingerprint}`"]]
    return "## Model\n\n" + markdown_table(["part", "what"], rows, left=(0, 1))


def _data_section(data: DataCard) -> str:
    source = data.source.hub or data.source.path or "drawn by code"
    lines = [f"**{data.title}** (`{data.name}`, {source}). License of the data: {data.license}."]
    if data.relevance:
        lines.append(f"Relevance: {data.relevance}")
    if data.caveats:
        lines.append("Caveats:\n\n" + "\n".join(f"- {caveat}" for caveat in data.caveats))
    return "## Data\n\n" + "\n\n".join(lines)


def _yaml_block(values: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(values, default=str))
    return f"```yaml\n{yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)}```"
