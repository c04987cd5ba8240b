"""The network: presets, backbone, heads, checkpoints. Importing this package loads no torch."""
