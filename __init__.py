"""captionmill captions images offline and in bulk: a ResNet's features are cached once, an LSTM turns them into words."""
