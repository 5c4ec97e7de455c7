"""Fine-tune a pretrained BERT and a pretrained ViT: the image tower stays locked while the heads settle.

accelerate launch --quiet recipes/finetune_pretrained.py --data.card data_cards/fashion_products.md
"""

from dataclasses import replace
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
    """Both backbones come from the Hub, once; the saved model needs neither of them again."""
    return RunConfig(
        model=ModelConfig(
            text=TextTowerConfig(name="bert", pretrained="google-bert/bert-base-uncased", pooling="mean"),
            image=ImageTowerConfig(name="vit_small_patch16_224", pretrained=True),
            image_settings=ImageSettings(height=224, width=224),
            embed_dim=512,
        ),
        data=DataConfig(card=Path("data_cards/fashion_products.md"), workers=4),
        loss=LossConfig(name="infonce"),
        train=TrainConfig(
            epochs=5,
            batch_size=128,
            lr=5e-4,
            text_lr=3e-5,
            image_lr=3e-5,
            layer_decay=0.85,
            lock_image=0.2,
            weight_decay=0.05,
        ),
        out=Path("runs/finetuned"),
    )


def smoke() -> RunConfig:
    """The same way in seconds, from tiny towers without pretrained weights."""
    full = config()
    model = replace(
        full.model,
        text=TextTowerConfig(name="bert", width=32, layers=2, heads=2),
        image=ImageTowerConfig(name="vit_tiny_patch16_224", options={"embed_dim": 48, "depth": 2, "num_heads": 2}),
        image_settings=ImageSettings(height=64, width=64),
    )
    return replace(full, model=model, data=DataConfig(card=Path("data_cards/synthetic.md"))).smoke()


if __name__ == "__main__":
    launch(config, smoke)
