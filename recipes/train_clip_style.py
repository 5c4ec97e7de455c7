"""The main job: a small dual tower from scratch with symmetric InfoNCE, as in CLIP.

accelerate launch --quiet recipes/train_clip_style.py
accelerate launch --quiet recipes/train_clip_style.py --data.card data_cards/fashion_products.md --out runs/fashion
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


def plain_network(*channels: int) -> ImageTowerConfig:
    """Residual blocks of plain 3x3 convolutions, each at half the size of the one before.

    timm's ByobNet builds any such network. On a CPU four blocks of 48, 96, 192 and 384 channels train more than twice
    as fast as resnet10t, the smallest ResNet that timm has a name for.
    """
    options = {
        "blocks": [{"type": "basic", "d": 1, "c": c, "s": 2, "gs": 0, "br": 1.0} for c in channels],
        "stem_type": "3x3",
        "stem_pool": "",
        "stem_chs": 32,
        "num_features": 0,
        "zero_init_last": False,  # blocks that begin as mere shortcuts lose an epoch to waking up
    }
    return ImageTowerConfig(name="gernet_s", options=options)


def config() -> RunConfig:
    """What two processor cores can train: minutes on the synthetic catalog, an hour on tens of thousands of photos."""
    return RunConfig(
        model=ModelConfig(
            text=TextTowerConfig(name="bow", width=256),
            image=plain_network(48, 96, 192, 384),
            image_settings=ImageSettings(height=80, width=60, resize="pad"),
            embed_dim=256,
            head_norm="batch",
        ),
        data=DataConfig(card=Path("data_cards/synthetic.md")),
        loss=LossConfig(name="infonce"),
        train=TrainConfig(
            epochs=60,
            batch_size=256,
            optimizer="nmuon",
            lr=5e-3,
            adamw_lr=2.5e-3,
            ema=0.998,
            augmentation_strength=0.5,
        ),
        out=Path("runs/clip_style"),
    )


if __name__ == "__main__":
    launch(config)
