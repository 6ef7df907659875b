"""``stif-rt view``: a clip as continuous video, in a browser."""
