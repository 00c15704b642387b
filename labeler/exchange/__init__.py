"""Part labels in other people's formats: out to be looked at and corrected, and back in."""
