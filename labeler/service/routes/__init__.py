"""The HTTP interface, one file per concern."""
