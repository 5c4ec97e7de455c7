"""Chinese titles: a vocabulary learned from the catalog and a TextCNN, without word segmentation.

accelerate launch --quiet recipes/train_chinese_titles.py
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
    """SentencePiece cuts Chinese into pieces by itself, so nothing here differs from English but the card."""
    return RunConfig(
        model=ModelConfig(
            text=TextTowerConfig(name="textcnn", width=256),
            image=ImageTowerConfig(name="resnet10t", options={"channels": (48, 96, 192, 384), "stem_width": 16}),
            image_settings=ImageSettings(height=64, width=64),
            embed_dim=256,
        ),
        data=DataConfig(card=Path("data_cards/synthetic_zh.md")),
        loss=LossConfig(name="infonce"),
        train=TrainConfig(epochs=30, batch_size=256, lr=2e-3),
        out=Path("runs/chinese_titles"),
    )


if __name__ == "__main__":
    launch(config)
