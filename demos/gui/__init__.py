"""What is behind the browser app: plain functions, and thin tabs that call them.

``engine`` runs one job at a time, ``catalog`` finds and loads models, ``generate`` makes pictures, the others
draw and measure. Nothing but ``parts`` and the tabs knows Gradio. Imports are relative: the wheel carries
this folder under another name.
"""
