"""The grounding service: engine, limits, readiness, metrics, and its HTTP application."""
