"""The titles of the synthetic catalog: the words for each attribute and the ways to put them together."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

import numpy as np

from dualtower.data.synthetic.rendering import ProductSpec

__all__ = ["WORDS", "Language", "title"]

Language = Literal["en", "zh"]

# An empty word: of a plain product, many titles say nothing about its pattern.
ENGLISH = {
    "t-shirt": ("T-shirt", "tee", "short-sleeved shirt"),
    "dress": ("dress", "summer dress", "frock"),
    "tote bag": ("tote bag", "tote", "shopper"),
    "hat": ("hat", "sun hat", "brimmed hat"),
    "shoe": ("shoes", "sneakers", "lace-up shoes"),
    "cushion": ("cushion", "throw pillow", "sofa cushion"),
    "mug": ("mug", "coffee mug", "coffee cup"),
    "teapot": ("teapot", "tea pot", "tea kettle"),
    "vase": ("vase", "flower vase"),
    "bottle": ("bottle", "water bottle", "carafe"),
    "lamp": ("lamp", "table lamp", "bedside lamp"),
    "chair": ("chair", "dining chair", "kitchen chair"),
    "red": ("red", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "mustard"),
    "green": ("green", "forest green"),
    "blue": ("blue", "royal blue"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
    "teal": ("teal", "turquoise"),
    "navy": ("navy", "navy blue"),
    "brown": ("brown", "chocolate"),
    "beige": ("beige", "sand"),
    "grey": ("grey", "gray"),
    "black": ("black", "jet black"),
    "white": ("white", "ivory"),
    "plain": ("plain", "solid", ""),
    "striped": ("stripes", "stripe pattern"),
    "dotted": ("dots", "polka dots"),
    "checked": ("checks", "gingham checks"),
    "zigzag": ("zigzags", "chevrons"),
    "cotton": ("cotton", "pure cotton"),
    "denim": ("denim", "stitched denim"),
    "leather": ("leather", "soft leather"),
    "wool": ("wool", "knitted wool", "chunky knit"),
    "ceramic": ("ceramic", "glazed ceramic", "porcelain"),
    "glass": ("glass", "clear glass"),
    "steel": ("steel", "stainless steel", "brushed metal"),
    "wood": ("wood", "oak wood"),
}
CHINESE = {
    "t-shirt": ("T恤", "短袖", "短袖T恤"),
    "dress": ("连衣裙", "吊带裙", "裙子"),
    "tote bag": ("手提袋", "托特包", "购物袋"),
    "hat": ("帽子", "遮阳帽", "宽檐帽"),
    "shoe": ("鞋子", "休闲鞋", "系带鞋"),
    "cushion": ("抱枕", "靠垫", "沙发靠枕"),
    "mug": ("马克杯", "咖啡杯", "带把水杯"),
    "teapot": ("茶壶", "泡茶壶"),
    "vase": ("花瓶", "插花瓶"),
    "bottle": ("瓶子", "水瓶", "储水瓶"),
    "lamp": ("台灯", "床头灯", "桌灯"),
    "chair": ("椅子", "餐椅", "靠背椅"),
    "red": ("红色", "大红色"),
    "orange": ("橙色", "橘色"),
    "yellow": ("黄色", "姜黄色"),
    "green": ("绿色", "墨绿色"),
    "blue": ("蓝色", "宝蓝色"),
    "purple": ("紫色", "紫罗兰色"),
    "pink": ("粉色", "粉红色"),
    "teal": ("蓝绿色", "青色"),
    "navy": ("藏青色", "海军蓝"),
    "brown": ("棕色", "咖啡色"),
    "beige": ("米色", "米黄色"),
    "grey": ("灰色", "浅灰色"),
    "black": ("黑色", "纯黑色"),
    "white": ("白色", "纯白色"),
    "plain": ("纯色", "素色", ""),
    "striped": ("条纹", "条状纹"),
    "dotted": ("圆点", "波点", "波尔卡圆点"),
    "checked": ("格子", "格纹", "方格"),
    "zigzag": ("锯齿纹", "人字纹", "波浪折线"),
    "cotton": ("棉质", "纯棉", "全棉"),
    "denim": ("牛仔", "牛仔布", "丹宁"),
    "leather": ("皮质", "皮革", "真皮"),
    "wool": ("羊毛", "针织", "毛线编织"),
    "ceramic": ("陶瓷", "瓷质", "釉面陶瓷"),
    "glass": ("玻璃", "透明玻璃"),
    "steel": ("不锈钢", "金属", "钢制"),
    "wood": ("木质", "实木", "木制"),
}
WORDS: dict[Language, dict[str, tuple[str, ...]]] = {"en": ENGLISH, "zh": CHINESE}

PLAIN: dict[Language, tuple[str, ...]] = {
    "en": (
        "{pattern} {color} {material} {object}",
        "{color} {material} {object}, {pattern}",
        "{pattern} {material} {object} in {color}",
        "{object} - {color}, {pattern} {material}",
        "new {color} {object}, {pattern} {material}",
    ),
    "zh": (
        "{pattern}{color}{material}{object}",
        "{color}{pattern}{material}{object}",
        "{material}{object} {color}{pattern}",
        "新款{pattern}{color}{material}{object}",
        "{material}{pattern}{object}（{color}）",
    ),
}
PATTERNED: dict[Language, tuple[str, ...]] = {
    "en": (
        "{color} {material} {object} with {accent} {pattern}",
        "{material} {object} in {color} with {accent} {pattern}",
        "{color} {object}, {accent} {pattern}, {material}",
        "{object} - {accent} {pattern} on {color} {material}",
        "new {material} {object}, {accent} {pattern} on {color}",
    ),
    "zh": (
        "{color}底{accent}{pattern}{material}{object}",
        "{material}{object} {color}底{accent}{pattern}",
        "新款{color}{material}{object}配{accent}{pattern}",
        "{accent}{pattern}{color}底{material}{object}",
        "{material}{object}（{color}底，{accent}{pattern}）",
    ),
}


def title(spec: ProductSpec, language: Language, rng: np.random.Generator) -> str:
    """Name a product in one of many ways.

    Such as ``Blue cotton tote bag with white stripes`` and ``蓝色底白色条纹棉质手提袋``.
    """
    templates = PLAIN if spec.pattern == "plain" else PATTERNED
    words = {slot: _pick(WORDS[language].get(value, ("",)), rng) for slot, value in asdict(spec).items()}
    text = " ".join(_pick(templates[language], rng).format(**words).split())  # an empty word leaves two spaces
    text = text.removesuffix(",")
    return text[0].upper() + text[1:]


def _pick(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
