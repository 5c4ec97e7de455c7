"""Pretrain an image tower on images alone with BYOL: it predicts its own slow copy, without any negatives.

accelerate launch --quiet recipes/pretrain_byol.py
accelerate launch --quiet recipes/pretrain_byol.py --data.card data_cards/fashion_products.md --train.minutes 30
"""

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

# The network of train_clip_style.py: residual blocks of plain 3x3 convolutions.
OPTIONS = {
    "blocks": [{"type": "basic", "d": 1, "c": c, "s": 2, "gs": 0, "br": 1.0} for c in (48, 96, 192, 384)],
    "stem_type": "3x3",
    "stem_pool": "",
    "stem_chs": 32,
    "num_features": 0,
    "zero_init_last": False,
}


def config() -> RunConfig:
    """What two processor cores can train: two minutes on the synthetic catalog, half an hour on a shop's photos."""
    return RunConfig(
        model=ModelConfig(
            text=None,
            image=ImageTowerConfig(name="gernet_s", options=OPTIONS),
            image_settings=ImageSettings(height=80, width=60, resize="pad"),
            head="none",
        ),
        data=DataConfig(card=Path("data_cards/synthetic.md")),
        objective="byol",
        ssl=SelfSupervisedConfig(projection=256, momentum=0.99, final_momentum=1.0),
        train=TrainConfig(
            minutes=2,
            batch_size=256,
            sync_batchnorm=True,  # on several processes BYOL collapses without it
            augmentation="simclr",
            augmentation_strength=0.6,
            optimizer="nmuon",
            lr=5e-3,
            adamw_lr=2.5e-3,
            validate_every=5,
        ),
        out=Path("runs/byol"),
    )


if __name__ == "__main__":
    launch(config)
