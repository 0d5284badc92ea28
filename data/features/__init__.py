"""Feature stores: one feature vector per image key, in HDF5."""
