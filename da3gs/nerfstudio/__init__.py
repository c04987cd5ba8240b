"""The nerfstudio plug-in: methods `da3gs` and `da3gs-splat`. The only part of da3gs that imports nerfstudio."""
