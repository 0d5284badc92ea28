"""HDF5 files: opened, checked and read without trusting their content."""
