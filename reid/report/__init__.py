"""The report of a run; it reads what evaluation wrote and computes no score."""
