"""How text is generated, as flags that several verbs share: the options of the tasks that write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plainformer.cli.flags import Flags, flags_of
from plainformer.tasks.speech.options import SpeechOptions
from plainformer.tasks.writing.options import Text2TextOptions, TextGenerationOptions

if TYPE_CHECKING:
    GenerationFlags = Flags
else:
    GenerationFlags = flags_of(
        "GenerationFlags",
        *(TextGenerationOptions, Text2TextOptions, SpeechOptions),
        group="How text is generated",
        without=("batch_size", "truncate"),
    )
