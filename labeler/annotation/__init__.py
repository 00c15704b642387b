"""Labels a manifest through a grounding service, in this process or over HTTP, into Parquet shards."""
