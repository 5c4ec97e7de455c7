"""One vector per product from title, image and attributes, on the towers of a trained model.

accelerate launch --quiet recipes/train_product_fusion.py --base runs/clip_style/model
accelerate launch --quiet recipes/train_product_fusion.py --base runs/fashion/model \
    --data.card data_cards/fashion_products.md --task.labels articleType,baseColour --task.heads articleType,baseColour
"""

from dataclasses import replace
from pathlib import Path

from dualtower import (
    DataConfig,
    FusionConfig,
    ImageSettings,
    ImageTowerConfig,
    ModelConfig,
    RunConfig,
    TaskConfig,
    TextTowerConfig,
    TrainConfig,
    launch,
)


def config() -> RunConfig:
    """The towers rest; to train them too, type --train.lock-text 0 --train.lock-image 0 --train.lr 1e-4."""
    return RunConfig(
        base="runs/clip_style/model",
        model=ModelConfig(fusion=FusionConfig(method="concat")),
        data=DataConfig(card=Path("data_cards/synthetic.md")),
        objective="product",
        task=TaskConfig(labels=("object", "color"), heads=("object", "color")),
        train=TrainConfig(epochs=20, batch_size=256, lr=1e-3, lock_text=1, lock_image=1, validate_every=2),
        out=Path("runs/product_fusion"),
    )


def smoke() -> RunConfig:
    """Needs no trained model: small towers and their fusion learn together."""
    whole = config().smoke()
    towers = replace(
        whole.model,
        text=TextTowerConfig(name="bow", width=32),
        image=ImageTowerConfig(name="resnet10t", options={"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 32)}),
        image_settings=ImageSettings(height=32, width=32),
    )
    return replace(whole, base=None, model=towers, train=replace(whole.train, lock_text=0, lock_image=0))


if __name__ == "__main__":
    launch(config, smoke)
