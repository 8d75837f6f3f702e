"""A data set prepared once: canvases and contours in shards that are memory-mapped, with a Parquet index.

    sources ──worker──▶ rows ──shards──▶ shard files ──index──▶ index.parquet ──reading──▶ pixels, box, contour

Everything up to the index runs without torch, so that worker processes start fast and stay small.
"""
