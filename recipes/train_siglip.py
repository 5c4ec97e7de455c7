"""The pairwise sigmoid loss of SigLIP, with its learned bias, on a short BERT and a small Swin.

accelerate launch --quiet recipes/train_siglip.py
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
    """Scale and bias begin at 10 and -10, as in the paper: most pairs are negatives, and begin as such."""
    return RunConfig(
        model=ModelConfig(
            text=TextTowerConfig(name="bert", width=256, layers=2, heads=4),
            image=ImageTowerConfig(
                name="swin_tiny_patch4_window7_224",
                options={"embed_dim": 48, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "window_size": 4},
            ),
            image_settings=ImageSettings(height=64, width=64),
            embed_dim=256,
            init_scale=10.0,
            init_bias=-10.0,
        ),
        data=DataConfig(card=Path("data_cards/synthetic.md")),
        loss=LossConfig(name="siglip"),
        train=TrainConfig(epochs=30, batch_size=256, lr=1e-3, sampling="no_duplicate_products"),
        out=Path("runs/siglip"),
    )


if __name__ == "__main__":
    launch(config)
