"""What the service reads and answers; its OpenAPI description is made from these."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from dualtower.search.engine import SearchRequest
from dualtower.types import Item

__all__ = ["MAX_CURSOR", "Answer", "CatalogOut", "ExplanationOut", "ItemChange", "ItemIn", "ItemOut", "SearchIn"]

Id = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Values = dict[str, str | int | float | None]  # an integer stays one: 2005 as a text is no "2005.0"
Title = Annotated[str, StringConstraints(max_length=2000)]
Weight = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]
MAX_CURSOR = 300_000
"""Characters of a cursor: one of a re-ranked search names up to a hundred rows."""


class SearchIn(BaseModel):
    """A request."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(max_length=2000, description="Words.")] = ""
    image: Annotated[Base64Bytes | None, Field(description="Image: JPEG, PNG, WebP, GIF.")] = None
    negative_texts: Annotated[list[Title], Field(max_length=10, description="Words to lead away from.")] = []
    text_weight: Weight = 1.0
    image_weight: Weight = 1.0
    target: Annotated[
        Literal["image", "text", "product"] | None,
        Field(description="What is compared with; by default image, or text where the model embeds texts alone."),
    ] = None
    where: Annotated[str, Field(max_length=4000, description="Filter, such as color = 'Red' and price < 50.")] = ""
    limit: Annotated[int, Field(ge=1, le=100)] = 10
    cursor: Annotated[str | None, Field(max_length=MAX_CURSOR, description="Of the page before.")] = None
    group_by_product: Annotated[bool, Field(description="One hit per product.")] = True

    @classmethod
    def form_schema(cls) -> dict[str, Any]:
        """The same for a form, in which the image is a file."""
        schema = cls.model_json_schema()
        schema["properties"]["image"] = {"type": "string", "format": "binary"}
        return schema

    def search_request(self) -> SearchRequest:
        """Return the request that the search engine answers."""
        given = {name: getattr(self, name) for name in type(self).model_fields}  # a dump would encode the image again
        return SearchRequest(**{**given, "negative_texts": tuple(self.negative_texts)})


class Row(BaseModel):
    """What is shown of a row."""

    title: str
    attributes: dict[str, str | float | None]


class HitOut(BaseModel):
    """One hit."""

    id: str
    product_id: str
    score: float
    row: Row


class Answer(BaseModel):
    """A page of hits."""

    hits: list[HitOut]
    cursor: str | None
    reranked: Annotated[
        int | None, Field(description="Best rows that were re-ranked; absent where the service re-ranks nothing.")
    ] = None


class ItemIn(BaseModel):
    """A row to be written; it needs a title or an image."""

    model_config = ConfigDict(extra="forbid")

    id: Id
    product_id: Id | None = None
    title: Title = ""
    attributes: Values = {}
    image: Annotated[Base64Bytes | None, Field(description="Image.")] = None

    def product(self) -> Item:
        """Return the row that the model embeds."""
        texts = (self.title.strip(),) if self.title.strip() else ()
        return Item(self.id, self.product_id or self.id, texts, self.image or None, self.attributes)


class ItemChange(BaseModel):
    """New values of some attributes of a row; null takes one away. All else stays as it is."""

    model_config = ConfigDict(extra="forbid")

    attributes: Annotated[Values, Field(min_length=1, max_length=1000)]

    @model_validator(mode="before")
    @classmethod
    def _attributes_alone(cls, values: Any) -> Any:
        if isinstance(values, dict) and (embedded := sorted({"title", "image", "product_id"} & values.keys())):
            raise ValueError(f"{embedded[0]} cannot change alone; send the whole row with PUT /items")
        return values


class ItemOut(BaseModel):
    """A row."""

    id: str
    product_id: str
    row: Row


class WordWeight(BaseModel):
    """A word of the request, and what it added to the score."""

    word: str
    weight: float


class ExplanationOut(BaseModel):
    """Why a row was found."""

    score: float
    method: str
    words: list[WordWeight]
    image: str


class Value(BaseModel):
    """A value of an attribute, and how many rows have it."""

    value: str
    count: int


class Attribute(BaseModel):
    """What stands in an attribute."""

    type: Literal["text", "number"]
    values: list[Value] = []
    low: float | None = None
    high: float | None = None
    approximate: Annotated[bool, Field(description="Some rows were not looked at: there may be more of each.")] = False


class CatalogOut(BaseModel):
    """What a catalog holds."""

    card: str
    rows: int
    vector_names: list[str]
    attributes: dict[str, Attribute]
