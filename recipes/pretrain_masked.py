"""Pretrain a small ViT as a masked autoencoder: it sees a quarter of the patches and draws the others.

Judge it by fine-tuning it (`dualtower probe --method finetune`), not by its neighbors: its vectors are made for that.

accelerate launch --quiet recipes/pretrain_masked.py
accelerate launch --quiet recipes/pretrain_masked.py --data.card data_cards/fashion_products.md --train.minutes 30
"""

from dataclasses import replace
from pathlib import Path

from dualtower import (
    DataConfig,
    ImageSettings,
    ImageTowerConfig,
    ModelConfig,
    RunConfig,
    SelfSupervisedConfig,
    TrainConfig,
    launch,
)


def config() -> RunConfig:
    """A ViT of six narrow layers over patches of 8x8 pixels, for two processor cores."""
    vit = {"patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3}
    return RunConfig(
        model=ModelConfig(
            text=None,
            image=ImageTowerConfig(name="vit_tiny_patch16_224", options=vit, pooling="avg"),
            image_settings=ImageSettings(height=80, width=60, resize="pad"),
            head="none",
        ),
        data=DataConfig(card=Path("data_cards/synthetic.md")),
        objective="masked",
        ssl=SelfSupervisedConfig(masked=0.75, decoder_width=128, decoder_layers=2),
        train=TrainConfig(
            minutes=2,
            batch_size=256,
            augmentation="product",
            lr=1.5e-3,
            beta2=0.95,
            validate_every=5,
        ),
        out=Path("runs/masked"),
    )


def smoke() -> RunConfig:
    """The same way in seconds, with a narrower ViT."""
    whole = config().smoke()
    vit = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}
    image = ImageTowerConfig(name="vit_tiny_patch16_224", options=vit, pooling="avg")
    return replace(whole, model=replace(whole.model, image=image))


if __name__ == "__main__":
    launch(config, smoke)
