"""A manifest through the grounding service, in this process or over HTTP, into Parquet shards."""
