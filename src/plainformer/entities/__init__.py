"""What many documents' entities say together: phrases, what occurs with what, and which document has what is required.

Nothing here runs a model: `analyse` is given a function that finds a text's entities, and one that compares phrases.
"""

from plainformer.entities.analysis import Analysis, analyse
from plainformer.entities.documents import Document, Found, Mention, read_documents
from plainformer.entities.matching import Match, Ranked, read_requirements
from plainformer.entities.phrases import Pair, Phrase, Piece, cut, normal_form

__all__ = [
    "Analysis",
    "Document",
    "Found",
    "Match",
    "Mention",
    "Pair",
    "Phrase",
    "Piece",
    "Ranked",
    "analyse",
    "cut",
    "normal_form",
    "read_documents",
    "read_requirements",
]
