"""Generated pedestrians with exact part boxes and attributes, in four domains."""

from pipelines.synthetic.dataset import generate_dataset
from pipelines.synthetic.domains import DOMAINS
from pipelines.synthetic.render import Sample, render_person

__all__ = ["DOMAINS", "Sample", "generate_dataset", "render_person"]
