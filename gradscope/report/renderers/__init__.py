"""Renderers: each one pure `render(report) -> str`."""
