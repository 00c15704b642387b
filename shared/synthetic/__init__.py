"""Generated pedestrians with known parts: four domains to train and test on where no real data may be used."""

from shared.synthetic.contact import contact_sheet
from shared.synthetic.dataset import generate_dataset
from shared.synthetic.domains import DOMAINS
from shared.synthetic.render import Sample, render_person

__all__ = ["DOMAINS", "Sample", "contact_sheet", "generate_dataset", "render_person"]
