"""Clients that people use, unchanged: langchain, litellm, llm, cohere, curl, and OpenAI's and Vercel's of npm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.serving import Running

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network
NODE = next(
    (
        Path(one)
        for one in (os.environ.get("PLAINFORMER_NODE_MODULES", ""), ROOT / "node_modules")
        if one and Path(one).is_dir()
    ),
    None,
)
HI = "What is the capital of France?"


# ---- langchain ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def langchain(house: Running) -> Iterator[Any]:
    openai = pytest.importorskip("langchain_openai")
    given = dict(base_url=f"{house.url}/v1", api_key="none", model="smol", temperature=0, max_tokens=24, max_retries=0)
    yield openai.ChatOpenAI(**given, stream_usage=True)


def test_langchain_chats(langchain: Any) -> None:
    whole = langchain.invoke(HI)
    assert "Paris" in whole.content and whole.usage_metadata["output_tokens"] > 2
    chunks = list(langchain.stream(HI))
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert chunks[-1].usage_metadata or any(chunk.usage_metadata for chunk in chunks)


def test_langchain_reads_structures_and_calls_tools(langchain: Any) -> None:
    pydantic = pytest.importorskip("pydantic")
    shape = pydantic.create_model("Capital", city=(str, pydantic.Field(max_length=12)))
    long = langchain.bind(max_tokens=60)
    found = (
        langchain.model_copy(update={"max_tokens": 60}).with_structured_output(shape, method="json_schema").invoke(HI)
    )
    assert isinstance(found.city, str)
    schema = {
        "title": "weather",
        "description": "Weather.",
        "type": "object",
        "properties": {"city": {"enum": ["Paris"]}},
        "required": ["city"],
    }
    answer = langchain.model_copy(update={"max_tokens": 60}).bind_tools([schema], tool_choice="required").invoke(HI)
    assert answer.tool_calls[0]["name"] == "weather" and answer.tool_calls[0]["args"] == {"city": "Paris"}
    assert long is not None


def test_langchain_embeds(house: Running) -> None:
    openai = pytest.importorskip("langchain_openai")
    given = dict(base_url=f"{house.url}/v1", api_key="none", model="minilm", max_retries=0)
    vectors = openai.OpenAIEmbeddings(**given, check_embedding_ctx_length=False).embed_documents(["a cat", "a dog"])
    assert len(vectors) == 2 and len(vectors[0]) == 384


# ---- litellm, llm, cohere -----------------------------------------------------------------------------------------------


def test_litellm(house: Running) -> None:
    litellm = pytest.importorskip("litellm")
    given = dict(model="openai/smol", api_base=f"{house.url}/v1", api_key="none", num_retries=0)
    whole = litellm.completion(**given, messages=[{"role": "user", "content": HI}], temperature=0, max_tokens=8)
    assert "capital" in whole.choices[0].message.content and whole.usage.completion_tokens > 2
    chunks = litellm.completion(
        **given, messages=[{"role": "user", "content": HI}], temperature=0, max_tokens=8, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**given, messages=[{"role": "user", "content": "hello " * 9000}])
    vectors = litellm.embedding(**{**given, "model": "openai/minilm"}, input=["a cat"], encoding_format="float")
    assert len(vectors.data[0]["embedding"]) == 384


def test_cohere_reranks(house: Running) -> None:
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2(api_key="none", base_url=house.url)
    documents = ["the cat sat on the mat", "the dog looked at it"]
    found = client.rerank(model="ranker", query="the cat", documents=documents, top_n=1)
    expected = house.ask("/v2/rerank", {"model": "ranker", "query": "the cat", "documents": documents, "top_n": 1})
    assert [(one.index, one.relevance_score) for one in found.results] == [
        (one["index"], one["relevance_score"]) for one in expected["results"]
    ]


def test_llm(house: Running, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    rows = [{"model_id": "smol", "model_name": "smol", "api_base": f"{house.url}/v1", "api_key_name": "none"}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(rows))
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none", "LLM_LOAD_PLUGINS": ""}
    for more in ([], ["--no-stream"]):
        command = [
            sys.executable,
            "-m",
            "llm",
            "prompt",
            "-m",
            "smol",
            "--key",
            "none",
            *more,
            "-o",
            "temperature",
            "0",
            "-o",
            "max_tokens",
            "8",
            HI,
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0 and "capital" in done.stdout, done.stderr


# ---- curl and npm -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(house: Running) -> None:
    body = json.dumps(
        {"model": "smol", "messages": [{"role": "user", "content": HI}], "temperature": 0, "max_tokens": 4}
    )
    head = ["-H", "Content-Type: application/json", "-d"]
    command = ["curl", "-sS", f"{house.url}/v1/chat/completions", *head, body]
    assert json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)["choices"]
    streamed = ["curl", "-sSN", f"{house.url}/v1/chat/completions", *head, body[:-1] + ', "stream": true}']
    page = subprocess.run(streamed, capture_output=True, check=True, timeout=60).stdout.decode()
    assert page.endswith("data: [DONE]\n\n") and page.count("data: ") >= 5


needs_node = pytest.mark.skipif(
    shutil.which("node") is None or NODE is None,
    reason="there is no node, or no node_modules (PLAINFORMER_NODE_MODULES)",
)


def node(tmp_path: Path, package: str, program: str) -> Any:
    """What a JavaScript program prints, as JSON."""
    assert NODE is not None
    if not (NODE / package).is_dir():
        pytest.skip(f"{package} is not among the node modules")
    (tmp_path / "node_modules").symlink_to(NODE)
    (tmp_path / "program.mjs").write_text(program)
    done = subprocess.run(["node", "program.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_openai_of_npm(house: Running, tmp_path: Path) -> None:
    found = node(tmp_path, "openai", f"""
import OpenAI from "openai";
const client = new OpenAI({{baseURL: "{house.url}/v1", apiKey: "none", maxRetries: 0}});
const given = {{model: "smol", messages: [{{role: "user", content: "{HI}"}}], temperature: 0, max_tokens: 8}};
const whole = await client.chat.completions.create(given);
let text = "";
const stream = await client.chat.completions.create({{...given, stream: true}});
for await (const chunk of stream) text += chunk.choices[0].delta.content ?? "";
const vector = (await client.embeddings.create({{model: "minilm", input: "a cat"}})).data[0].embedding;
let error = "";
try {{ await client.models.retrieve("nothing"); }} catch (raised) {{ error = raised.constructor.name; }}
console.log(JSON.stringify({{whole: whole.choices[0].message.content, text, vector, error}}));
""")  # fmt: skip
    assert found["whole"] == found["text"] != "" and len(found["vector"]) == 384 and found["error"] == "NotFoundError"
    plain = house.ask("/v1/embeddings", {"model": "minilm", "input": "a cat"})["data"][0]["embedding"]
    assert found["vector"] == pytest.approx(plain, abs=1e-7)


@needs_node
def test_the_ai_sdk(house: Running, tmp_path: Path) -> None:
    found = node(tmp_path, "@ai-sdk/openai-compatible", f"""
import {{ createOpenAICompatible }} from "@ai-sdk/openai-compatible";
const provider = createOpenAICompatible({{name: "plainformer", baseURL: "{house.url}/v1", apiKey: "none", includeUsage: true}});
const model = provider.chatModel("smol");
const prompt = [{{role: "user", content: [{{type: "text", text: "{HI}"}}]}}];
const whole = await model.doGenerate({{prompt, temperature: 0, maxOutputTokens: 8}});
const {{ stream }} = await model.doStream({{prompt, temperature: 0, maxOutputTokens: 8}});
let text = "", kinds = [];
for await (const part of stream) {{ kinds.push(part.type); if (part.type === "text-delta") text += part.delta; }}
const inputSchema = {{type: "object", properties: {{city: {{enum: ["Paris"]}}}}, required: ["city"]}};
const tools = [{{type: "function", name: "weather", inputSchema}}];
const called = await model.doGenerate({{prompt, tools, toolChoice: {{type: "required"}}, temperature: 0, maxOutputTokens: 40}});
console.log(JSON.stringify({{whole: whole.content, text, kinds, called: called.content}}));
""")  # fmt: skip
    assert (
        found["whole"][0]["text"] == found["text"] != ""
        and "finish" in found["kinds"]
        and "error" not in found["kinds"]
    )
    (call,) = found["called"]
    assert call["type"] == "tool-call" and json.loads(call["input"]) == {"city": "Paris"}
