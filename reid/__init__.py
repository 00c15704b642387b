"""Cross-domain person re-identification: training on part labels, evaluation, and `PersonEncoder`, a run's model.

`import reid` is light; `reid.PersonEncoder` imports torch when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reid.inference.encoder import Embeddings, PersonEncoder

__all__ = ["Embeddings", "PersonEncoder"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from reid.inference import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module 'reid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
