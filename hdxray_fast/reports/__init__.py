"""Radiology reports: studies in, text out. Rooms: studies, cleaning, tokenizers, metrics, decoders, training, writing.

Nothing is imported here, so that reading and cleaning reports needs neither torch nor transformers.
"""
