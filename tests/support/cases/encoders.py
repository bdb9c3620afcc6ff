"""Encoder-only families: each head, and each value that changes the computation."""

from __future__ import annotations

from typing import Any

import transformers

from tests.support.parity import PAD, VOCABULARY, Case

TINY: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=64,
    pad_token_id=PAD,
    num_labels=3,
)


def config(name: str, **changes: Any) -> Any:
    return lambda: getattr(transformers, name)(**{**TINY, **changes})


def heads(family: str, prefix: str, *, token_types: int = 0, **changes: Any) -> list[Case]:
    """The usual heads of an encoder."""
    made = config(f"{prefix}Config", **changes)
    names = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    spans = config(f"{prefix}Config", **{**changes, "num_labels": 2})  # some span heads size themselves by num_labels
    cases = [
        Case(family, prefix + name, spans if "Question" in name else made, token_types=token_types) for name in names
    ]
    if hasattr(transformers, f"{prefix}ForMultipleChoice"):
        cases.append(Case(family, f"{prefix}ForMultipleChoice", made, kind="choice", token_types=token_types))
    return cases


# What a tiny model of each family needs beside TINY.
ALBERTS: dict[str, Any] = dict(embedding_size=20)
MODERN: dict[str, Any] = dict(
    num_hidden_layers=4, eos_token_id=2, bos_token_id=0, cls_token_id=0, sep_token_id=2, rope_parameters=None
)
BIASES: dict[str, Any] = dict(
    norm_bias=True, attention_bias=True, mlp_bias=True, classifier_bias=True, decoder_bias=True, local_attention=4
)
RELU: dict[str, Any] = dict(hidden_activation="relu", classifier_activation="relu")
TYPES = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
}
V3: dict[str, Any] = dict(
    relative_attention=True,
    position_buckets=4,
    max_relative_positions=-1,
    pos_att_type="p2c|c2p",
    share_att_key=True,
    norm_rel_ebd="layer_norm",
    position_biased_input=False,
    type_vocab_size=0,
)


def albert(**changes: Any) -> Any:
    return config("AlbertConfig", **{**ALBERTS, **changes})


def electra(**changes: Any) -> Any:
    return config("ElectraConfig", **{**ALBERTS, **changes})


def modern(**changes: Any) -> Any:
    return config("ModernBertConfig", **{**MODERN, **changes})


def deberta(**changes: Any) -> Any:
    return config("DebertaV2Config", **{**V3, **changes})


BERT = [
    *heads("bert", "Bert", token_types=2),
    Case("bert-relu", "BertForMaskedLM", config("BertConfig", hidden_act="relu"), token_types=2),
    Case("bert-untied", "BertForMaskedLM", config("BertConfig", tie_word_embeddings=False), token_types=2),
    Case("bert-gelu-new", "BertModel", config("BertConfig", hidden_act="gelu_new", type_vocab_size=5), token_types=5),
]

ROBERTA = [
    *heads("roberta", "Roberta", token_types=2),
    *heads("xlm-roberta", "XLMRoberta", type_vocab_size=1),
    Case("roberta-pad-id", "RobertaModel", config("RobertaConfig", pad_token_id=3, layer_norm_eps=1e-5), token_types=2),
    Case("roberta-relu", "RobertaForMaskedLM", config("RobertaConfig", hidden_act="relu"), token_types=2),
    Case("roberta-untied", "RobertaForMaskedLM", config("RobertaConfig", tie_word_embeddings=False)),
    Case("roberta-full-table", "RobertaModel", config("RobertaConfig", max_position_embeddings=11)),
]

CAMEMBERT = [
    *heads("camembert", "Camembert", type_vocab_size=1),
    Case("camembert-ids", "CamembertModel", config("CamembertConfig", bos_token_id=5, eos_token_id=6), token_types=2),
]

MPNET = [
    *heads("mpnet", "MPNet"),
    Case("mpnet-long", "MPNetModel", config("MPNetConfig"), length=60),
    Case("mpnet-relu", "MPNetForMaskedLM", config("MPNetConfig", hidden_act="relu", layer_norm_eps=1e-5)),
    Case("mpnet-untied", "MPNetForMaskedLM", config("MPNetConfig", tie_word_embeddings=False)),
    Case("mpnet-full-table", "MPNetModel", config("MPNetConfig", max_position_embeddings=11)),
]

DISTILBERT = [
    *heads("distilbert", "DistilBert", hidden_dim=37),
    Case("distilbert-relu", "DistilBertForMaskedLM", config("DistilBertConfig", hidden_dim=37, activation="relu")),
    Case("distilbert-untied", "DistilBertForMaskedLM", config("DistilBertConfig", tie_word_embeddings=False)),
    Case("distilbert-sinusoidal", "DistilBertModel", config("DistilBertConfig", sinusoidal_pos_embds=True)),
]

ALBERT = [
    *heads("albert", "Albert", token_types=2, embedding_size=20),
    Case("albert-groups", "AlbertForMaskedLM", albert(num_hidden_layers=5, num_hidden_groups=2)),
    Case("albert-unshared", "AlbertModel", albert(num_hidden_layers=3, num_hidden_groups=3)),
    Case("albert-inner", "AlbertModel", albert(num_hidden_layers=2, inner_group_num=2)),
    Case(
        "albert-groups-inner", "AlbertForMaskedLM", albert(num_hidden_layers=3, num_hidden_groups=2, inner_group_num=3)
    ),
    Case("albert-same-size", "AlbertForMaskedLM", albert(embedding_size=32)),
    Case("albert-relu", "AlbertForMaskedLM", albert(hidden_act="relu", type_vocab_size=3), token_types=3),
    Case("albert-untied", "AlbertForMaskedLM", albert(tie_word_embeddings=False)),
]

ELECTRA = [
    *heads("electra", "Electra", token_types=2, embedding_size=20),
    *heads("electra-same-size", "Electra", token_types=2, embedding_size=32),
    Case("electra-relu", "ElectraForMaskedLM", electra(hidden_act="relu")),
    Case("electra-relu", "ElectraForSequenceClassification", electra(hidden_act="relu")),
    Case("electra-untied", "ElectraForMaskedLM", electra(tie_word_embeddings=False)),
    *[
        Case(f"electra-summary-{name}", "ElectraForMultipleChoice", electra(**changes), kind="choice")
        for name, changes in {
            "last": dict(summary_type="last"),
            "index": dict(summary_type="cls_index"),
            "mean": dict(summary_type="mean", summary_activation="tanh"),
            "linear": dict(summary_activation=""),
            "bare": dict(summary_use_proj=False, summary_activation=""),
        }.items()
    ],
]

MODERNBERT = [
    *heads("modernbert", "ModernBert", **MODERN),
    Case("modernbert-window", "ModernBertForMaskedLM", modern(local_attention=4), length=14),
    Case("modernbert-odd-window", "ModernBertModel", modern(local_attention=5), length=14),
    Case("modernbert-window-1", "ModernBertModel", modern(local_attention=1), length=14),
    Case("modernbert-biases", "ModernBertForMaskedLM", modern(**BIASES)),
    Case("modernbert-biases", "ModernBertForSequenceClassification", modern(**BIASES)),
    Case("modernbert-no-decoder-bias", "ModernBertForMaskedLM", modern(decoder_bias=False)),
    Case("modernbert-untied", "ModernBertForMaskedLM", modern(tie_word_embeddings=False)),
    Case("modernbert-mean", "ModernBertForSequenceClassification", modern(classifier_pooling="mean")),
    Case("modernbert-activations", "ModernBertForTokenClassification", modern(**RELU)),
    Case("modernbert-thetas", "ModernBertModel", modern(global_rope_theta=500.0, local_rope_theta=20.0), length=14),
    Case("modernbert-every-2", "ModernBertModel", modern(global_attn_every_n_layers=2, local_attention=4), length=14),
    Case("modernbert-types", "ModernBertModel", modern(layer_types=TYPES, local_attention=4), length=14),
    Case("modernbert-ropes", "ModernBertModel", modern(rope_parameters=ROPES, local_attention=4), length=14),
]

DEBERTA = [
    *heads("deberta-v3", "DebertaV2", **V3),
    Case("deberta-not-legacy", "DebertaV2ForMaskedLM", deberta(legacy=False)),
    Case("deberta-untied", "DebertaV2ForMaskedLM", deberta(tie_word_embeddings=False)),
    Case("deberta-long", "DebertaV2Model", deberta(position_buckets=4, max_relative_positions=16), length=20),
    Case("deberta-raw", "DebertaV2Model", deberta(position_buckets=-1, max_relative_positions=4)),
    Case("deberta-raw-full", "DebertaV2Model", deberta(position_buckets=-1, max_relative_positions=-1)),
    Case("deberta-own-projections", "DebertaV2Model", deberta(share_att_key=False)),
    Case("deberta-own-c2p", "DebertaV2Model", deberta(share_att_key=False, pos_att_type=["c2p"])),
    Case("deberta-own-p2c", "DebertaV2Model", deberta(share_att_key=False, pos_att_type="p2c")),
    Case("deberta-c2p", "DebertaV2Model", deberta(pos_att_type=["c2p"])),
    Case("deberta-p2c", "DebertaV2Model", deberta(pos_att_type=["p2c"])),
    Case("deberta-listed", "DebertaV2Model", deberta(pos_att_type=["p2c", "c2p"])),
    Case("deberta-no-terms", "DebertaV2Model", deberta(pos_att_type=[])),
    Case("deberta-no-norm", "DebertaV2Model", deberta(norm_rel_ebd="none")),
    Case("deberta-absolute-too", "DebertaV2ForMaskedLM", deberta(position_biased_input=True)),
    Case("deberta-types", "DebertaV2Model", deberta(type_vocab_size=2), token_types=2),
    Case("deberta-narrow", "DebertaV2ForMaskedLM", deberta(embedding_size=20, position_biased_input=True)),
    Case("deberta-conv", "DebertaV2ForMaskedLM", deberta(conv_kernel_size=3, conv_act="gelu")),
    Case("deberta-conv-groups", "DebertaV2Model", deberta(conv_kernel_size=5, conv_groups=4)),
    Case("deberta-pooler", "DebertaV2ForSequenceClassification", deberta(pooler_hidden_act="tanh", hidden_act="relu")),
    Case(
        "deberta-plain",
        "DebertaV2ForMaskedLM",
        deberta(relative_attention=False, position_biased_input=True, norm_rel_ebd="none"),
    ),
    Case("deberta-plain-no-terms", "DebertaV2Model", config("DebertaV2Config", type_vocab_size=2), token_types=2),
]

ALL = [*BERT, *ROBERTA, *CAMEMBERT, *MPNET, *DISTILBERT, *ALBERT, *ELECTRA, *MODERNBERT, *DEBERTA]
