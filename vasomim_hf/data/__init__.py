"""Frames in, arrays and data sets out. Import the module you need: `vesselness`, `frames`, `synthetic`, ..."""
