"""The text of a model answer to one outcome per part: JSON, Python and JSON5 readings, tables, plain text."""
