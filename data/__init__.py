"""Everything on disk: images, reference captions, the feature store, the vocabulary, the model bundle, tables."""
