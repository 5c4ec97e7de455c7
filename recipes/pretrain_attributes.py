"""Pretrain an attribute encoder: an autoencoder of what a card says of its products, without texts and images.

accelerate launch --quiet recipes/pretrain_attributes.py
accelerate launch --quiet recipes/pretrain_attributes.py --data.card data_cards/fashion_products.md --train.lr 1e-3 \
    --model.attribute-encoder.attributes.names masterCategory subCategory articleType baseColour usage \
    --reconstruction.relevance articleType --out runs/attributes_fashion

Its model starts the attributes of a fusion:

accelerate launch --quiet recipes/train_product_fusion.py --base runs/clip_style/model \
    --model.fusion.attributes.names pattern accent material \
    --model.fusion.attributes.pretrained runs/attributes/model
"""

from pathlib import Path

from dualtower import (
    AttributeEncoderConfig,
    AttributesConfig,
    DataConfig,
    ModelConfig,
    ReconstructionConfig,
    RunConfig,
    TrainConfig,
    launch,
)


def config() -> RunConfig:
    """Half of the values are hidden, so that each is learned from the others."""
    names = ("object", "color", "pattern", "accent", "material")
    return RunConfig(
        model=ModelConfig(
            text=None,
            image=None,
            attribute_encoder=AttributeEncoderConfig(AttributesConfig(names, dropout=0.5)),
            embed_dim=64,
        ),
        data=DataConfig(card=Path("data_cards/synthetic.md"), workers=0),
        objective="attributes",
        reconstruction=ReconstructionConfig(relevance=("object",)),
        train=TrainConfig(epochs=40, batch_size=256, lr=3e-4, validate_every=4),
        out=Path("runs/attributes"),
    )


if __name__ == "__main__":
    launch(config)
