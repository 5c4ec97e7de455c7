"""A cross-attention re-ranker on the towers of a trained model.

accelerate launch --quiet recipes/train_reranker.py --base runs/clip_style/model
accelerate launch --quiet recipes/train_reranker.py --base runs/fashion/model --data.card data_cards/fashion_products.md
"""

from dataclasses import replace
from pathlib import Path

from train_clip_style import plain_network

from dualtower import (
    DataConfig,
    ImageSettings,
    ImageTowerConfig,
    MatchingConfig,
    ModelConfig,
    RerankerConfig,
    RunConfig,
    TextTowerConfig,
    TrainConfig,
    launch,
)


def config() -> RunConfig:
    """The model's towers rest, and the re-ranker looks at everything itself: it learns to err where they do not.

    Without `text` and `image` it would read the tokens of the model's own towers, which cost nothing more. To train
    those towers too, type --train.lock-text 0 --train.lock-image 0 --train.lr 1e-4.
    """
    return RunConfig(
        base="runs/clip_style/model",
        model=ModelConfig(
            reranker=RerankerConfig(
                layers=2,
                width=128,
                text=TextTowerConfig(name="bow", width=256),
                image=plain_network(48, 96, 192, 384),
            )
        ),
        data=DataConfig(card=Path("data_cards/synthetic.md")),
        objective="matching",
        matching=MatchingConfig(negatives=2),
        train=TrainConfig(
            epochs=30,
            batch_size=256,
            optimizer="nmuon",
            lr=5e-3,
            adamw_lr=2.5e-3,
            ema=0.998,
            augmentation_strength=0.5,
            lock_text=1,
            lock_image=1,
            validate_every=2,
        ),
        out=Path("runs/reranker"),
    )


def smoke() -> RunConfig:
    """Needs no trained model: small towers and their re-ranker learn together."""
    whole = config().smoke()
    text = TextTowerConfig(name="bow", width=32)
    image = ImageTowerConfig(name="resnet10t", options={"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 32)})
    model = ModelConfig(
        text=text,
        image=image,
        image_settings=ImageSettings(height=32, width=32),
        reranker=RerankerConfig(layers=2, width=32, text=text, image=image),
    )
    train = replace(whole.train, lock_text=0, lock_image=0)
    return replace(whole, base=None, model=model, train=train, evaluation=replace(whole.evaluation, rerank=10))


if __name__ == "__main__":
    launch(config, smoke)
