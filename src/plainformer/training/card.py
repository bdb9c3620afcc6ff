"""The model card of a checkpoint: what the run knows by then."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

import plainformer
from plainformer.config.building import as_data
from plainformer.inputs.text.tokenizer import Tokenizer
from plainformer.model.transformer import Transformer
from plainformer.train.card import CARD, Card, Side
from plainformer.train.kept_verdict import kept_verdict
from plainformer.train.optimizer import trained
from plainformer.train.record import evaluations
from plainformer.train.run import State
from plainformer.training.prepared import Prepared

_AFTER_RESULTS = "\n## Data\n"


def tell_best(folder: Path) -> None:
    """Write the verdict of a run that has ended into the card of its best model, which was saved before there was one.

    Again, it changes nothing; neither does it where people have rewritten the card.
    """
    verdict, path = kept_verdict(folder), (folder / "best").resolve() / CARD
    if verdict is None or not path.is_file():
        return
    before = path.read_text(encoding="utf-8")
    if "\nOverfitting: " in before or before.count(_AFTER_RESULTS) != 1:
        return
    said = f"\nOverfitting: {verdict['sentence']}. This is of the whole run, after this model too.\n"
    temporary = path.with_name(f".tmp-{CARD}")
    temporary.write_text(before.replace(_AFTER_RESULTS, said + _AFTER_RESULTS), encoding="utf-8")
    os.replace(temporary, path)


def card_of(prepared: Prepared, model: Transformer, state: State, folder: Path) -> Card:
    """Return the card of a run's model after some steps."""
    config, start, plan = prepared.config, prepared.start, prepared.plan
    stores = {"train": (prepared.examples, config.data.train)}
    if prepared.validation is not None:
        stores["validation"] = (prepared.validation, config.data.validation or config.data.train)
    sides = prepared.data["sides"]
    sources = [source for _, source in stores.values()]
    method = "lora" if config.model.lora is not None else "head" if config.model.train == "head" else "full"
    return Card(
        name=folder.name,
        objective=config.objective,
        model_type=str(start.config.source.get("model_type", "")),
        parameters=model.num_parameters,
        trained=sum(parameter.numel() for parameter in trained(model).values()),
        data=[
            Side(
                *(name, source.path, len(store), int(store.lengths.sum()), sides[name]["rows"]),
                left_out={reason: found.count for reason, found in store.counts.dropped.items()},
            )
            for name, (store, source) in stores.items()
        ],
        options=as_data(replace(config, data=replace(config.data, cache=None))),  # where data are kept changes nothing
        step=state.step,
        total_steps=plan.total_steps,
        epochs=state.step / plan.steps_per_epoch,
        tokens=state.tokens,
        evaluations=evaluations(folder),
        metric=prepared.metric.name,
        verdict=str((kept_verdict(folder) or {}).get("sentence", "")),
        base=config.model.ref,
        method=method,
        hub_data=sorted({source.path for source in sources if source.format == "hub"}),
        mask_token=_mask_token(start.tokenizer),
        units="" if start.config.head.scaling is None else start.config.head.scaling.line(),
        versions={"plainformer": plainformer.__version__, "torch": torch.__version__},
    )


def _mask_token(tokenizer: Tokenizer | None) -> str:
    known = None if tokenizer is None or tokenizer.mask_id is None else tokenizer.id_to_token(tokenizer.mask_id)
    return known or "[MASK]"
