"""Readers of posed, unposed and depth data; each foreign convention ends inside the reader that needs it."""
