"""Feature stores: rows of numbers by image key, in HDF5."""
