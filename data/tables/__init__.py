"""Tables of captions: their rows and formats, the journal behind them, and what a person decided."""
