"""What ranks do in the tests of pipelines; each function returns what it finds wrong, [] for nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from plainformer.errors import UsageError
from plainformer.generation.search import generate
from plainformer.model.transformer import ModelOutput, Transformer
from plainformer.parallel.mesh import Mesh
from plainformer.parallel.pipeline import Pipeline, Work
from plainformer.parallel.sync import add_up_shared, gradient_norm
from tests.support.shares import SHARED, config_of, inputs_of, loss_of, mesh_of, own_part, whole

MICRO = 4
DECODERS = ("llama", "gpt2", "mistral", "t5", "bart", "whisper")
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": dict(num_beams=3),
    "samples": dict(do_sample=True, temperature=0.9, seed=3, num_return_sequences=2),
    "beam-sample": dict(num_beams=3, do_sample=True, seed=2),
    "diverse": dict(num_beams=4, num_beam_groups=2, diversity_penalty=0.5),
    "contrastive": dict(penalty_alpha=0.5, top_k=4),
    "guided": dict(guidance_scale=1.5),
    "layers": dict(dola_layers="low"),
    "lookup": dict(prompt_lookup=2),
    "int8": dict(cache_kind="int8"),
    "chunked": dict(prefill_chunk=3),
    "draft": dict(num_draft_tokens=3),
}
FEW = {mode: MODES[mode] for mode in ("greedy", "beams", "contrastive", "draft")}


def deep(name: str, seed: int = 0) -> Transformer:
    """Return a model of four layers or more."""
    layers = {"t5": 3, "bart": 2, "whisper": 2}.get(name, 4)
    return whole(config_of(name, layers=layers), seed, scale=0.3)


def everything(rank: int, world: int, written: dict[str, Any]) -> list[str]:
    """Walk all cases of one pipeline of `world` stages; `written` is what one process writes."""
    mesh = mesh_of(pp=world)
    found = [*calls(mesh), *refused(mesh), *frozen(mesh), *kept(mesh)]
    for number, name in enumerate(SHARED):  # each schedule with each of them, at one number of stages or the other
        found += gradients(mesh, name, ("1f1b", "gpipe")[(number + world) % 2])
    own = texts(world, mesh)
    return found + [f"{what}: {own.get(what)} for {text}" for what, text in written.items() if own.get(what) != text]


def four_stages(rank: int) -> list[str]:
    """Walk what depends on the number of stages."""
    mesh = mesh_of(pp=4)
    return [*(one for name in SHARED for one in gradients(mesh, name, "1f1b")), *kept(mesh)]


def gradients(mesh: Mesh, name: str, schedule: Any) -> list[str]:
    """Losses, gradients and their norm of micro-batches of different lengths are those of one process."""
    model = deep(name)
    part = own_part(model, mesh)
    batches = [inputs_of(model.config, number, length=5 + number) for number in range(MICRO)]
    expected, losses = [], dict[int, float]()
    for number, batch in enumerate(batches):
        loss = loss_of(model, batch, number)
        loss.backward()
        expected.append(loss.item())

    def scored(number: int) -> Tensor:
        loss = loss_of(part, batches[number], number)
        losses[number] = loss.item()
        return loss

    Pipeline(part, mesh, schedule).run(Work(batches, scored))
    add_up_shared(part, mesh)
    said = [f"loss {n}: {losses[n]} for {expected[n]}" for n in losses if abs(losses[n] - expected[n]) > 1e-6]
    if len(losses) != (MICRO if part.local is not None and part.local.is_last else 0):
        said.append(f"{len(losses)} losses")
    own = dict(model.named_parameters(remove_duplicate=False))
    for name_here, parameter in part.named_parameters():
        assert part.local is not None
        wanted = own[part.local.parts[name_here].name].grad
        if wanted is None or parameter.grad is None:
            said += [f"{name_here} has no gradient"] if (wanted is None) != (parameter.grad is None) else []
        elif (parameter.grad - wanted).norm() > 1e-6 + 1e-5 * wanted.norm():
            said.append(f"gradient of {name_here} differs by {(parameter.grad - wanted).norm():.1e}")
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    if not torch.isclose(gradient_norm(part, mesh), norm, rtol=1e-5):
        said.append(f"norm {gradient_norm(part, mesh)} for {norm}")
    return [f"{name}, {schedule}: {one}" for one in said]


def frozen(mesh: Mesh) -> list[str]:
    """What is not trained sends no gradient back: with the head alone, nothing does; nor through a frozen encoder."""
    found = []
    for name, trained in (("vit", "head."), ("bart", "decoder.")):
        model = deep(name)
        for path, parameter in model.named_parameters():
            parameter.requires_grad_(path.startswith(trained))
        part = own_part(model, mesh)
        batches = [inputs_of(model.config, number, length=5) for number in range(MICRO)]
        for number, batch in enumerate(batches):
            loss_of(model, batch, number).backward()
        _learn(part, mesh, batches)
        add_up_shared(part, mesh)
        assert part.local is not None
        own = dict(model.named_parameters(remove_duplicate=False))
        for path, parameter in part.named_parameters():
            mine, wanted = parameter.grad, own[part.local.parts[path].name].grad
            if mine is None or wanted is None:
                found += [f"{name}: {path}"] if (mine is None) != (wanted is None) else []
            elif (mine - wanted).norm() > 1e-6 + 1e-5 * wanted.norm():
                found.append(f"{name}: {path}")
    return found


def _learn(part: Transformer, mesh: Mesh, batches: list[dict[str, Tensor]], schedule: Any = None) -> None:
    Pipeline(part, mesh, schedule).run(Work(batches, lambda number: loss_of(part, batches[number], number)))


def kept(mesh: Mesh) -> list[str]:
    """A stage keeps what autograd saves of min(m, p - s) micro-batches with 1F1B, and of all with GPipe."""
    found, count, stage = [], 6, mesh.place.pp
    part = own_part(deep("llama"), mesh)
    batch = inputs_of(part.config, 0)
    for schedule in ("1f1b", "gpipe"):
        of_one, of_all = (_saved(part, mesh, schedule, [batch] * micro) for micro in (1, count))
        wanted = count if schedule == "gpipe" else min(count, mesh.layout.pp - stage)
        if of_all != wanted * of_one:
            found.append(f"{schedule}, stage {stage}: {of_all / of_one} micro-batches, not {wanted}")
    return found


def _saved(part: Transformer, mesh: Mesh, schedule: Any, batches: list[dict[str, Tensor]]) -> int:
    """Return the most tensors that autograd keeps at once."""
    with saved() as most:
        _learn(part, mesh, batches, schedule)
    return most()


class _Saved:
    def __init__(self, x: Tensor) -> None:
        self.x = x


@contextmanager
def saved() -> Iterator[Callable[[], int]]:
    """Count the tensors that autograd keeps: yields what returns the most that there were at once."""
    most = [0, 0]

    def less() -> None:
        most[0] -= 1

    def pack(x: Tensor) -> _Saved:
        held = _Saved(x)
        weakref.finalize(held, less)
        most[0] += 1
        most[1] = max(most)
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.x):
        yield lambda: most[1]


def texts(world: int, mesh: Mesh | None = None) -> dict[str, Any]:
    """What each mode writes to a padded batch, by one process or by this stage of `world`: ids, and reasons to stop."""
    found: dict[str, Any] = {}
    for name in DECODERS:
        whole_model = deep(name).eval()
        model = whole_model if mesh is None else own_part(whole_model, mesh)
        given: dict[str, Any] = inputs_of(model.config, 1, rows=3, length=9)
        given.pop("decoder_input_ids", None)
        for mode, options in (MODES if name in ("llama", "mistral", "t5") and world == 2 else FEW).items():
            if mode == "draft":
                options = {**options, "draft_model": deep(name, seed=1).eval()}
            own = generate(model, **given, max_new_tokens=12, **options)
            found[f"{name}, {mode}"] = own.token_ids, own.stop_reasons
    return found


def _equal(own: Tensor, other: Tensor, mask_BT: Tensor | None) -> bool:
    """Whether outputs are alike but for rounding, where they are of a position that is not padding.

    One process computes rows without their padding, and stages compute it with them.
    """
    if own.shape != other.shape or not own.is_floating_point():
        return torch.equal(own, other)
    if mask_BT is not None and own.dim() == 3 and own.size(1) in (2, mask_BT.size(1)):
        real_BT = mask_BT[:, -own.size(1) :].bool()
        own, other = own[real_BT], other[real_BT]
    return bool((own - other).abs().max() <= 2e-5 * other.abs().max())


@torch.inference_mode()
def calls(mesh: Mesh) -> list[str]:
    """What tasks call of a model gives on all stages what it gives in one process."""
    found: list[str] = []
    for name in SHARED:
        model = deep(name).eval()
        part, given = own_part(model, mesh), inputs_of(model.config, 2)
        mask_BT = given.get("attention_mask")
        if "input_values" in given:  # whose mask is of samples, not of positions
            mask_BT = model.states(**given).real_BT

        def same(what: str, own: Any, other: Any, name: str = name, mask_BT: Any = mask_BT) -> None:
            if own is None or other is None:
                found.extend([f"{name}: {what}"] if own is not other else [])
            elif not _equal(own, other, mask_BT):
                found.append(f"{name}: {what}")

        for options in ({}, {"only_logits": True}, {"output_hidden_states": True}, {"logits_to_keep": 2}):
            own, other = part(**given, **options), model(**given, **options)
            for what in ("logits", "last_hidden_state", "pooler_output"):
                same(f"{what} {options}", getattr(own, what), getattr(other, what))
            for a, b in zip(own.hidden_states or (), other.hidden_states or (), strict=True):
                same("hidden states", a, b)
        _pieces(part, model, given, same)
    return found


def _pieces(part: Transformer, model: Transformer, given: dict[str, Any], same: Callable[..., None]) -> None:
    own, other = part.states(**given), model.states(**given)
    same("states", own.last_hidden_state, other.last_hidden_state)
    same("real", own.real_BT, other.real_BT)
    if model.config.head.pick == "all":
        same("scores", part.score(own.last_hidden_state), model.score(other.last_hidden_state))
    if model.encoder is not None:
        read = {key: value for key, value in given.items() if not key.startswith("decoder")}
        own, other = part.encode(**read), model.encode(**read)
        same("encoded", own.last_hidden_state, other.last_hidden_state)
        if model.decoder is not None:
            ids = given["decoder_input_ids"]
            outputs: list[ModelOutput] = [
                each(decoder_input_ids=ids, encoder_output=encoded) for each, encoded in ((part, own), (model, other))
            ]
            same("decoded", outputs[0].logits, outputs[1].logits)
    if "input_ids" in given:
        same("embedded", part.embed_tokens(given["input_ids"]), model.embed_tokens(given["input_ids"]))


def refused(mesh: Mesh) -> list[str]:
    """What cannot be is said on all stages, before anyone waits for anyone."""
    model = deep("gpt2").eval()
    part, found = own_part(model, mesh), []
    ids = inputs_of(model.config, 0)["input_ids"]
    for what, call in (
        ("attentions", lambda: part(ids, output_attentions=True)),
        ("ids", lambda: part(ids + 100)),
        ("length", lambda: part(ids.repeat(1, 20))),
        ("mask", lambda: part(ids, ids[:, 1:])),
    ):
        try:
            call()
            found.append(f"{what} is accepted")
        except Exception as error:
            found += [] if type(error).__name__ in ("UsageError", "InputError") else [f"{what}: {error!r}"]
    part.pipe = None
    try:
        part(ids)
        found += [] if part.local is None or part.local.place.pp == 0 else ["a part runs alone"]
    except UsageError:
        pass
    return found


def tasks(rank: int, folders: dict[str, str]) -> list[str]:
    """Loaded tasks answer as in one process when their model is a part of one."""
    import plainformer

    mesh, found = mesh_of(pp=2), []
    texts = ["the cat sat on the mat", "a dog"]
    clip = {"array": torch.sin(torch.arange(900) / 3).numpy(), "sampling_rate": 16000}
    given: dict[str, list[Any]] = {name: [clip] if "audio" in name else list(texts) for name in folders}
    for name, folder in folders.items():
        task = plainformer.load(folder, backend="plain")
        options = {"max_new_tokens": 6} if name in ("text-generation", "text2text") else {}
        expected = task(given[name], **options)
        task.model = own_part(task.model, mesh).eval()
        own = task(given[name], **options)
        if str(own) != str(expected):
            found.append(f"{name}: {own} for {expected}")
    return found
