"""The demo: two real models, from PyPI packages, doing three things. Run it with `make demo`."""

from __future__ import annotations

import sys
import time

import plainformer as pf


def main() -> None:
    """A chat answer, the most probable next tokens, and sentence similarities."""
    start = time.perf_counter()
    chat = pf.load("smollm2-135m-instruct")
    note(f"loaded SmolLM2-135M-Instruct in {time.perf_counter() - start:.1f} s")

    print("\n1. A chat answer\n")
    question = "What is the capital of France?"
    print(f"   user       {question}")
    print("   assistant  ", end="", flush=True)
    for piece in chat.stream([{"role": "user", "content": question}], max_new_tokens=40):
        print(piece, end="", flush=True)
    print("\n")

    print("2. The most probable next tokens of 'The capital of France is'\n")
    for token in pf.explain(chat, "The capital of France is", top_k=5).next_tokens:
        print(f"   {token.probability:6.1%}  {token.token!r}")

    embed = pf.load("all-minilm-l6-v2")
    print("\n3. Sentence similarity (cosine, MiniLM)\n")
    first = "A man is eating food."
    for other in ("A man is eating a piece of bread.", "A woman is playing violin.", "Someone has lunch."):
        print(f"   {embed.similarity(first, other):.4f}  {first} / {other}")


def note(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
