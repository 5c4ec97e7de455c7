"""The main job: a small dual tower from scratch with symmetric InfoNCE, as in CLIP.

accelerate launch recipes/train_clip_style.py
accelerate launch recipes/train_clip_style.py --data.card data_cards/fashion_products.md --out runs/fashion
"""

from pathlib import Path

from dualtower import (
    DataConfig,
    ImageSettings,
    ImageTowerConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    TextTowerConfig,
    TrainConfig,
    launch,
)


def config() -> RunConfig:
    """A plain residual network and a short text transformer: what two processor cores can train in minutes."""
    return RunConfig(
        model=ModelConfig(
            text=TextTowerConfig(name="bert", width=256, layers=2, heads=4),
            image=ImageTowerConfig(name="resnet10t"),
            image_settings=ImageSettings(height=80, width=60),
            embed_dim=256,
        ),
        data=DataConfig(card=Path("data_cards/drawn.md")),
        loss=LossConfig(name="infonce"),
        train=TrainConfig(epochs=30, batch_size=256, lr=2e-3, progressive=(0.6, 0.8, 1.0), ema=0.998),
        out=Path("runs/clip_style"),
    )


if __name__ == "__main__":
    launch(config)
