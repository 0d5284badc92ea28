"""captionmill captions images offline and in bulk: ResNet features are cached once, an LSTM turns them into words."""
