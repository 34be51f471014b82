"""One file per family of models, with its configurations and a ``FAMILY``; files that start with an
underscore hold what several families share.
"""
