"""Generated pedestrians with known parts: four domains to train and test on where no real data may be used."""

from pipelines.synthetic.contact import contact_sheet
from pipelines.synthetic.dataset import generate_dataset
from pipelines.synthetic.domains import DOMAINS
from pipelines.synthetic.render import Sample, render_person

__all__ = ["DOMAINS", "Sample", "contact_sheet", "generate_dataset", "render_person"]
