"""Part labels from vision-language models: a grounding service, the annotator, and `Grounder` for single images.

Imports only `shared`, never torch; importing it is cheap, because the names below are loaded on first use.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labeler.grounder import AsyncGrounder, Grounder
    from labeler.grounding.answers import ImageAnswer

__all__ = ["AsyncGrounder", "Grounder", "ImageAnswer"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'labeler' has no attribute {name!r}")
    from labeler import grounder

    return getattr(grounder, name)
