"""Triplet loss with the hardest negatives of the batch (VSE++), on a bidirectional LSTM and a ResNet.

accelerate launch --quiet recipes/train_triplet.py
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
    """Semi-hard negatives: the hardest ones collapse a network that starts from scratch."""
    return RunConfig(
        model=ModelConfig(
            text=TextTowerConfig(name="lstm", width=256, layers=1),
            image=ImageTowerConfig(name="resnet10t", options={"channels": (48, 96, 192, 384), "stem_width": 16}),
            image_settings=ImageSettings(height=64, width=64),
            embed_dim=256,
        ),
        data=DataConfig(card=Path("data_cards/synthetic.md")),
        loss=LossConfig(name="triplet", margin=0.2, mining="semi-hard"),
        train=TrainConfig(epochs=30, batch_size=128, lr=1e-3),
        out=Path("runs/triplet"),
    )


if __name__ == "__main__":
    launch(config)
