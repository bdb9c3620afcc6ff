"""How text is generated, as flags that several verbs share: the options of the tasks that write."""

from __future__ import annotations

from plainformer.cli.flags import Flags
from plainformer.tasks.speech.options import SpeechOptions
from plainformer.tasks.writing.options import Text2TextOptions, TextGenerationOptions

_KINDS = (TextGenerationOptions, Text2TextOptions, SpeechOptions)
_OF_RUN = ("batch_size", "on_error", "truncate")


class ChatFlags(Flags, kinds=(TextGenerationOptions,), group="How text is generated", without=_OF_RUN):
    """The options of a chat's answers."""


class GenerationFlags(Flags, kinds=_KINDS, group="How text is generated", without=_OF_RUN):
    """The options of every task that writes."""
