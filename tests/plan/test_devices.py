"""Devices by name, sizes of memory, and this machine."""

from __future__ import annotations

import math

import pytest

from plainformer.config.shapes import shapes
from plainformer.errors import UsageError
from plainformer.families import config_from_dict
from plainformer.plan.devices import apart, devices, extras, find_device, parse_bytes, said, short
from plainformer.plan.machine import available_memory
from plainformer.plan.published import nearest, parse_count, published, size_in


def test_every_device_has_a_date_a_source_and_figures_in_their_range() -> None:
    for device in devices().values():
        assert "2026" in device.source and len(device.source) > 20
        size = int(device.name.rsplit(" ", 1)[1].removesuffix("GB"))
        # What the driver reports is near what the name says, in GB or in GiB; a Mac's system keeps a part.
        assert 0.78 * size * 2**30 < device.memory < 1.02 * size * 2**30
        assert device.bandwidth is not None and 5e10 < device.bandwidth < 1e13
        assert all(1e12 < rate < 1e16 for rate in device.flops.values())
    names = {device.rsplit(" ", 1)[0] for device in devices()}
    cards = "RTX 3060,RTX 3090,RTX 4090,RTX 5090,T4,L4,A10G,L40S,V100,A100,H100,H200,B200,MI300X"
    assert set(cards.split(",")) < names
    assert extras().date and all(extras().sources.values())


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("h100", "H100 80GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090 24GB"),
        ("rtx4090", "RTX 4090 24GB"),
        ("a100-80gb", "A100 80GB"),
        ("V100 16GB", "V100 16GB"),
        ("apple m4 max 64GB", "Apple M4 Max 64GB"),
    ],
)
def test_names_are_read_in_any_spelling(typed: str, name: str) -> None:
    assert find_device(typed).name == name


def test_names_that_are_not_known() -> None:
    with pytest.raises(UsageError, match="did you mean 'H100'"):
        find_device("h10")
    with pytest.raises(UsageError, match="'A100 40GB' or 'A100 80GB'"):
        find_device("A100")
    with pytest.raises(UsageError, match="give memory='24GB'"):
        find_device("abacus")
    with pytest.raises(UsageError):
        find_device("")


def test_sizes() -> None:
    assert parse_bytes("memory", "24GB") == 24 * 10**9 and parse_bytes("memory", "22 GiB") == 22 * 2**30
    assert parse_bytes("memory", "800mb") == 8 * 10**8 and parse_bytes("memory", "1.5TB") == 15 * 10**11
    for wrong in ("", "24", "GB", "-1GB", "0GB", "1e3GB", "24XB"):
        with pytest.raises(UsageError, match="memory"):
            parse_bytes("memory", wrong)
    assert said(13476831232) == "13.48 GB (12.55 GiB)" and said(5 * 10**6) == "5.00 MB (4.77 MiB)"
    assert short(5 * 10**6, 2 * 10**9) == "0.01 GB"
    assert apart(10**9 + 400_000, 10**9) == ("1.0004 GB", "1.0000 GB") and apart(10**9, 2 * 10**9)[0] == "1.00 GB"
    assert apart(7, 7) == ("0.00 MB", "0.00 MB")
    assert short(812) == "812 bytes" and short(2 * 10**12) == "2,000.00 GB"


def test_this_machine() -> None:
    found = find_device("this machine")
    assert found.kind == "cpu" and 10**7 < found.memory <= available_memory() * 2
    assert found.bandwidth is not None and 1e8 < found.bandwidth < 1e13 and 1e8 < found.flops["fp32"] < 1e15


def test_published_shapes_have_the_parameters_that_were_published() -> None:
    for one in published():
        sizes = shapes(config_from_dict(dict(one.config)))
        assert sum(map(math.prod, sizes.values())) == one.parameters, one.name


def test_the_nearest_published_shape() -> None:
    wanted = {"7B": "Llama-2-7b", "8B": "Llama-3.1-8B", "70B": "Llama-3.1-70B", "405b": "Llama-3.1-405B"}
    wanted |= {"1B": "Llama-3.2-1B", "14B": "Qwen3-14B", "120M": "SmolLM2-135M", "1.5B": "Qwen2.5-1.5B"}
    assert {typed: nearest(parse_count(typed)).name for typed in wanted} == wanted
    assert parse_count("7e9") == 7 * 10**9
    for wrong in ("", "B", "7X", "0", "7 billion", "10"):
        with pytest.raises(UsageError, match="params"):
            parse_count(wrong)
    assert parse_count("6,738,415,616") == 6738415616


def test_sizes_in_names() -> None:
    sizes = {"Llama-2-7b-hf": 7e9, "Qwen2.5-0.5B": 5e8, "smollm2-135m-instruct": 1.35e8, "7B as Llama-2-7b": 7e9}
    assert {name: size_in(name) for name in sizes} == sizes
    assert size_in("gpt2") is size_in("bert-base") is size_in("all-minilm-l6-v2") is None
