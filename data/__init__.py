"""Everything on disk: images, reference captions, the feature store, the vocabulary, models, tables."""
