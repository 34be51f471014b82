"""Trains the small demo pipelines under ``demos/models`` on captioned emoji scenes. Start with README.md."""
