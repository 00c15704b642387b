"""The labelling service over HTTP: application, routes, limits, authentication, logs, metrics."""
