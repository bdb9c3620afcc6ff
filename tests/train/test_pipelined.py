"""What a pipeline refuses before training starts."""

from __future__ import annotations

import pytest

from plainformer.config.parallel import ParallelConfig
from plainformer.errors import UsageError
from plainformer.train.pipelined import check_pipelined
from tests.support.training import train_config


def test_what_a_pipeline_refuses() -> None:
    stages = ParallelConfig(pp=2)
    check_pipelined(train_config("text-classification", parallel=stages))
    with pytest.raises(UsageError, match="looks at all losses of a step"):
        check_pipelined(train_config("text-classification", loss={"trim": 0.2}, parallel=stages))
