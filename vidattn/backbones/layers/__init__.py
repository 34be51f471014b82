"""Parts that mixers and models share; all take and give channels-last maps (B, *grid, C)."""
