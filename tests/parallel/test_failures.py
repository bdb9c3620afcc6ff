"""What another process's failure becomes, and that one process of several speaks."""

from __future__ import annotations

import pytest

from plainformer.parallel.failures import failure_of_another, speaks

GONE = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:17124"
LATE = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 5000ms for recv operation"


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("several")
def test_errors_of_others_are_told_from_own_ones() -> None:
    gone, late = failure_of_another(RuntimeError(GONE), 5), failure_of_another(RuntimeError(LATE), 5)
    assert gone is not None and gone.what == "another process of this run has ended"
    assert late is not None and late.what == "another process of this run has not answered for 5 seconds"
    assert failure_of_another(TimeoutError("the other processes have not come"), 5) is not None
    for own in (RuntimeError("shape '[2]' is invalid"), ValueError(GONE), KeyError("Timed out")):
        assert failure_of_another(own, 5) is None


@pytest.mark.usefixtures("several")
def test_what_does_not_go_on_begins_anew() -> None:
    for text in (GONE, LATE):
        found = failure_of_another(RuntimeError(text), 5, goes_on=False)
        assert found is not None and "begins anew" in found.fix and "timeout" not in found.fix


def test_one_process_alone_has_no_others() -> None:
    assert failure_of_another(RuntimeError(GONE), 5) is None
    assert speaks("anything") and speaks("anything")


@pytest.mark.usefixtures("several")
def test_without_a_store_everybody_speaks() -> None:
    assert speaks("anything")


@pytest.mark.usefixtures("several")
def test_the_first_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert [speaks("one"), speaks("one"), speaks("another")] == [True, False, True]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert [speaks("one"), speaks("one")] == [True, False]
