"""Clips, resizing and synthetic motion: what training and evaluation share."""
